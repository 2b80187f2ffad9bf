"""`--set`, JSON and differences: what is accepted, what is refused and in which words, and that nothing is lost."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maijax import overrides, plain, registry
from maijax.errors import UserError

TINY = registry.get("phi_tiny")
MOE = registry.get("mai_moe_3m")


def changed(*settings, base=TINY):
    """Path -> new value."""
    return {path: pair[1] for path, pair in overrides.diff(base, overrides.apply(base, settings)).items()}


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("train.steps=2_000", "train.steps", 2_000),
        ("train.steps=2e3", "train.steps", 2_000),
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        (" optim.lr = 0.5 ", "optim.lr", 0.5),
        ("optim.clip_norm=none", "optim.clip_norm", None),
        ("train.eval_every=None", "train.eval_every", None),
        ("model.tied_head=False", "model.tied_head", False),
        ("model.remat=full", "model.remat", "full"),
        ("train.prompt=a = b, c", "train.prompt", "a = b, c"),
        ("data.tokenizer=none.model", "data.tokenizer", "none.model"),
        ("data.sources[0].weight=2", "data.sources[0].weight", 2.0),
        ("mesh.data=2", "mesh.data", 2),
        ("mesh.attention=gather", "mesh.attention", "gather"),
    ],
)
def test_a_value_is_typed_by_its_field(setting, path, value):
    found = changed(setting)
    assert found == {path: value}
    assert type(found[path]) is type(value)


def test_sources():
    found = overrides.apply(TINY, ["data.sources=a.jsonl,b@host/c.txt@0.3,d@e"]).data.sources
    assert [(s.uri, s.weight, s.field) for s in found] == [
        ("a.jsonl", 1.0, "text"), ("b@host/c.txt", 0.3, "text"), ("d@e", 1.0, "text"),
    ]
    as_json = overrides.apply(TINY, ['data.sources=[{"uri": "a,b.txt", "field": "story"}]']).data.sources
    assert [(s.uri, s.field) for s in as_json] == [("a,b.txt", "story")]


def test_a_block_can_be_off_and_on():
    assert changed("model.moe=none", base=MOE)["model.moe"] is None
    one = overrides.apply(TINY, ["model.moe.num_experts=4", "model.moe.top_k=2", "model.moe.d_ff=8"])
    other = overrides.apply(TINY, ['model.moe={"num_experts": 4, "top_k": 2, "d_ff": 8}'])
    assert one == other and one.model.moe is not None and one.model.moe.top_k == 2
    with pytest.raises(UserError, match="model.moe.num_experts is missing; model.moe.d_ff is missing"):
        overrides.apply(TINY, ["model.moe.top_k=2"])


def test_later_settings_win():
    assert changed("train.steps=5", "train.steps=6") == {"train.steps": 6}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.stepz=3", "train.stepz: no such field; did you mean train.steps?"),
        ("steps=3", "steps: no such field; did you mean train.steps?"),
        ("trian.steps=3", "trian.steps: no such field; did you mean train.steps?"),
        ("model.kv_heads=1", "model.kv_heads: no such field; did you mean model.attention.kv_heads?"),
        ("optim.zzz=1", "optim.zzz: no such field; optim has name, lr,"),
        ("train.steps.x=1", "train.steps.x: no such field"),
        ("train..steps=1", "train..steps: no such field"),
        ("train.steps[0]=1", "train.steps[0]: train.steps is one value; leave out [0]"),
        ("data.sources[1].uri=x", "data.sources[1].uri: data.sources has 1 of them, counted from [0]"),
        ("data.sources.uri=x", "data.sources.uri: say which, e.g. data.sources[0].uri"),
        ("name=x", "name: no such field; did you mean model.parametrization.name or optim.name?"),
        ("train.steps=abc", "train.steps='abc' must be int"),
        ("train.steps=1.5", "train.steps='1.5' must be int"),
        ("train.steps=none", "train.steps='none' must be int"),
        ("train.eval_every=x", "train.eval_every='x' must be int or none"),
        ("optim.lr=fast", "optim.lr='fast' must be a finite float"),
        ("optim.lr=nan", "optim.lr='nan' must be a finite float"),
        ("optim.lr=1e999", "optim.lr='1e999' must be a finite float"),
        ("optim.name=adam", "optim.name='adam' must be adamw, muon, adafactor or lion"),
        ("model.tied_head=1", "model.tied_head='1' must be true or false"),
        ("train=x", "train='x' must be a block as JSON"),
        ("model.moe=x", "model.moe='x' must be a block as JSON, {\"field\": value} or none"),
        ('model.moe={"top_k": 1, "top_k": 2}', "model.moe: the key 'top_k' stands twice; keep one"),
        ('train={"steps": "1", "batch_size": 1, "seq_len": 1}', "train.steps='1' must be int"),
        ('model.moe={"top_kk": 1}', "model.moe.top_kk: no such field; did you mean model.moe.top_k?"),
        ("model.moe={", "model.moe: not JSON"),
        ("data.sources=[1]", "data.sources[0]=1 must be a block"),
        ("mesh.fsdp=none mesh.data=none", "mesh.fsdp='none mesh.data=none' must be int or none"),
        ("train.steps", "'train.steps' must be of the form a.b=value"),
        ("=3", "'=3' must be of the form a.b=value"),
        ("train.steps=0", "train.steps=0 must be above 0"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(setting, words):
    with pytest.raises(UserError) as caught:
        overrides.apply(TINY, [setting])
    message = str(caught.value)
    assert message.startswith(words) and "\n" not in message


def test_all_problems_of_settings_and_values_come_together():
    settings = [
        "train.stepz=3", "train.batch_size=0", "model.remat=fulll", "optim.lr=x", "model.moe.top_k=2",
        "model.attention.kv_heads=3",
    ]
    with pytest.raises(UserError) as caught:
        overrides.apply(TINY, settings)
    for part in (
        "train.stepz: no such field", "train.batch_size=0 must be above 0", "model.remat='fulll'", "optim.lr='x'",
        "model.moe.num_experts is missing",
    ):
        assert part in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_taken_or_refused_cleanly(setting):
    try:
        overrides.apply(TINY, [setting])
    except UserError as error:
        assert str(error)


LEAVES = {path: value for path, value in plain.flatten(MOE).items() if path not in plain.METADATA}


@given(st.sampled_from(sorted(LEAVES)), st.text(max_size=12))
def test_any_text_for_any_field_is_taken_or_refused_cleanly(path, text):
    try:
        overrides.apply(MOE, [f"{path}={text}"])
    except UserError as error:
        assert path.split(".")[0] in str(error)


@pytest.mark.parametrize("name", registry.names())
def test_what_show_prints_is_what_set_takes(name):
    experiment = registry.get(name)
    for path, value in plain.flatten(experiment).items():
        if path not in plain.METADATA:
            assert overrides.apply(experiment, [f"{path}={overrides.show(value)}"]) == experiment


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_shown_exactly(value):
    assert float(overrides.show(value)) == value


def test_a_number_is_shown_as_people_write_it():
    shown = [overrides.show(v) for v in (3e-4, 1e4, 0.02, 1.0, 1e-8, 5e5, 1.5e-4, 0.0, 1e22)]
    assert shown == ["3e-4", "10000", "0.02", "1", "1e-8", "500000", "1.5e-4", "0", "1e22"]


# ---- JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names())
def test_json_comes_back_the_same(name):
    experiment = registry.get(name)
    text = overrides.to_json(experiment)
    again = overrides.from_json(text)
    assert again == experiment and overrides.to_json(again) == text


def edited(edit) -> str:
    values = plain.to_plain(TINY)
    edit(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON: Expecting value at line 1, column 1"),
        ("[]", "the experiment=[] must be a block"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ("[" * 100_000, "not JSON"),
        (edited(lambda v: v["train"].pop("steps")), "train.steps is missing"),
        (edited(lambda v: v["train"].pop("seed")), "train.seed is missing"),
        (edited(lambda v: v["train"].update(stepz=1)), "train.stepz: no such field; did you mean train.steps?"),
        (edited(lambda v: v["train"].update(steps=1.0)), "train.steps=1.0 must be int"),
        (edited(lambda v: v["train"].update(steps=True)), "train.steps=True must be int"),
        (edited(lambda v: v["optim"].update(lr="3")), "optim.lr='3' must be a finite float"),
        (edited(lambda v: v["optim"].update(lr=10**400)), "optim.lr=1000"),
        (edited(lambda v: v.update(model=None)), "model=None must be a block"),
        (edited(lambda v: v["data"].update(sources={})), "data.sources={} must be a list"),
        (edited(lambda v: v["mesh"].update(rules=[])), "mesh.rules: no such field"),
    ],
)
def test_json_that_is_refused(text, words):
    with pytest.raises(UserError) as caught:
        overrides.from_json(text)
    assert str(caught.value).startswith(words)


def test_json_names_every_problem():
    def edit(values):
        del values["train"]["steps"], values["optim"]
        values["model"]["x"] = 1

    with pytest.raises(UserError, match=r"model\.x: no such field.*optim is missing.*train\.steps is missing"):
        overrides.from_json(edited(edit))


# ---- flatten and diff ---------------------------------------------------------------------------------------


def test_flatten_has_every_field_once():
    def fields(block) -> int:
        total = 0
        for field in dataclasses.fields(block):
            value = getattr(block, field.name)
            parts = value if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]) else (value,)
            total += sum(fields(p) if dataclasses.is_dataclass(p) else 1 for p in parts)
        return total

    for experiment in (TINY, MOE):
        flat = overrides.flatten(experiment)
        assert len(flat) == fields(experiment)
    assert flat["model.moe.top_k"] == 2 and flat["data.sources[0].uri"] == "tfds:maijax_stories"


def test_diff():
    assert overrides.diff(TINY, dataclasses.replace(TINY, name="other", rules=(("a", "b"),))) == {}
    found = overrides.diff(TINY, MOE)
    assert found["model.moe"] == (None, overrides.ABSENT)
    assert found["model.moe.top_k"] == (overrides.ABSENT, 2)
    assert set(found) == {"model.moe"} | {f"model.moe.{f.name}" for f in dataclasses.fields(MOE.model.moe)}
    assert math.isclose(overrides.diff(TINY, overrides.apply(TINY, ["optim.lr=1"]))["optim.lr"][1], 1)
