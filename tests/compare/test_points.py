"""Points are read from finished runs of one text, and from files; what cannot be compared is refused."""

import dataclasses
import json

import finished
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maijax import plain, registry, scaling, weights
from maijax.compare import points, select
from maijax.config import SourceConfig
from maijax.errors import UserError


def test_runs_by_name_by_folder_and_by_the_folder_they_are_in(tmp_path):
    a = finished.write(tmp_path / "a", finished.experiment(steps=50))
    finished.write(tmp_path / "b", finished.experiment(steps=100))
    for words in (["a", "b"], [str(a), "b"], [str(tmp_path)], [str(tmp_path), "a", "b"]):
        found = points.gather(words, runs_dir=tmp_path).points
        assert sorted(p.name for p in found) == ["a", "b"]
    made = finished.experiment(steps=50)
    (one,) = points.gather(["a"], runs_dir=tmp_path).points
    assert one.params == weights.count_active(made.model)
    assert one.tokens == made.tokens == 50 * made.train.batch_size * made.train.seq_len
    assert one.flops == scaling.train_flops(made)
    assert one.loss == pytest.approx(finished.law(one.params, one.tokens))  # the last evaluation, not the first
    assert points.gather(["a"], runs_dir=tmp_path, measure="bits_per_byte").points[0].loss == one.loss / 2


def test_each_count_is_another(tmp_path):
    finished.write(tmp_path / "a", finished.experiment())
    found = {c: points.gather(["a"], runs_dir=tmp_path, count=c).points[0].params for c in points.COUNTS}
    counted = scaling.parameters(finished.experiment().model)
    assert found["total"] == counted.total and found["active"] == counted.active
    assert found["non-embedding"] == counted.total - counted.embedding < found["matmul"] < found["active"]


def test_unfinished_runs_are_left_out(tmp_path):
    finished.write(tmp_path / "a", finished.experiment())
    finished.write(tmp_path / "b", finished.experiment(steps=9), finished=False)
    assert points.gather(["a", "b"], runs_dir=tmp_path).left_out == (("b", "not finished"),)
    with pytest.raises(UserError, match="no finished run among b"):
        points.gather(["b"], runs_dir=tmp_path)


def test_of_several_configurations_the_best_is_taken_by_its_mean_over_seeds(tmp_path):
    for name, lr, seed, loss in (("a", 1e-3, 0, 3.0), ("b", 1e-3, 1, 3.2), ("c", 1e-2, 0, 2.9), ("d", 1e-2, 1, 3.4)):
        finished.write(tmp_path / name, finished.experiment(lr=lr, seed=seed), loss=loss)
    found = points.gather([str(tmp_path)])
    assert [(p.name, p.losses) for p in found.points] == [("a (2 seeds)", (3.0, 3.2))]
    assert found.points[0].loss == pytest.approx(3.1) and len(set(found.points[0].digests)) == 2
    assert found.left_out == (("c", "beaten at its size and length"), ("d", "beaten at its size and length"))


def test_copies_of_a_run_count_once(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        finished.write(tmp_path / name, finished.experiment(seed=seed), loss=3.0 + seed)
    found = points.gather([str(tmp_path)])
    assert [p.losses for p in found.points] == [(3.0, 4.0)]
    assert found.left_out == (("b", "a copy of a, of the same seed"),)


def test_a_sweep_and_a_pattern_by_name(tmp_path):
    for name, steps in (("study/trial-0001", 50), ("study/trial-0002", 100), ("other", 200)):
        finished.write(tmp_path / name, finished.experiment(steps=steps))
    (tmp_path / "study" / "sweep.json").write_text("{}")
    every = (["study"], ["study/"], [str(tmp_path / "study")], [str(tmp_path / "study" / "trial-*")], ["st*"],
             ["study/trial-*"])
    for words in every:
        found = points.gather(words, runs_dir=tmp_path).points
        assert [p.name for p in found] == ["study/trial-0001", "study/trial-0002"], words
        assert points.gather([found[1].name], runs_dir=tmp_path).points[0].name == found[1].name
    (tmp_path / "study" / "trial-0002" / "experiment.json").write_text("{")
    found = points.gather(["study"], runs_dir=tmp_path)  # one that is damaged does not hold up the others
    assert len(found.points) == 1 and "cannot be read as an experiment" in dict(found.left_out)["study/trial-0002"]
    with pytest.raises(UserError, match="cannot be read as an experiment"):
        points.gather(["study/trial-0002"], runs_dir=tmp_path)


def test_settings_that_differ_beside_size_and_length_are_told(tmp_path):
    muon = finished.experiment(layers=3, steps=200)
    adamw = dataclasses.replace(muon, optim=dataclasses.replace(muon.optim, name="adamw", lr=0.02))
    norm = dataclasses.replace(finished.experiment(layers=4), train=dataclasses.replace(muon.train, batch_size=16))
    finished.write(tmp_path / "a", finished.experiment(layers=2, seed=3))
    assert points.gather(["a"], runs_dir=tmp_path).differ == ()
    for name, made in (("b", adamw), ("c", norm)):
        finished.write(tmp_path / name, made)
    found = points.gather(["a", "b", "c"], runs_dir=tmp_path).differ
    assert dict(found) == {"optim.name": ("muon", "adamw"), "optim.lr": ("0.001", "0.02"),
                           "train.batch_size": ("8", "16")}
    assert points.differ_words(found).startswith("optim.name (muon, adamw), optim.lr (0.001, 0.02), ")
    beaten = dataclasses.replace(finished.experiment(layers=2), optim=adamw.optim)
    finished.write(tmp_path / "d", beaten, loss=9.0)  # is not among the points
    assert points.gather(["a", "d"], runs_dir=tmp_path).differ == ()


def mixture(**changes):
    base = registry.get("mai_moe_3m")
    model, moe = base.model, base.model.moe
    assert moe is not None
    attention = dataclasses.replace(model.attention, window=16)
    for path, value in changes.items():
        owner, _, field = path.rpartition("__")
        if owner == "moe":
            moe = dataclasses.replace(moe, **{field: value})
        elif owner == "attention":
            attention = dataclasses.replace(attention, **{field: value})
        else:
            model = dataclasses.replace(model, **{field: value})
    return dataclasses.replace(base, model=dataclasses.replace(model, attention=attention, moe=moe), rules=())


def test_size_is_what_changes_the_number_of_weights_and_no_more():
    base = mixture()
    for path in points._SIZE:
        name = path.removeprefix("model.").replace(".", "__")
        value = plain.flatten(base)[path]
        other = mixture(**{name: 2 * value or 1})
        assert points.differ([base, other]) == [], path
        assert weights.count(other.model) != weights.count(base.model), path
    for name, value in (("attention__window", 32), ("context", 4096), ("moe__top_k", 1), ("vocab_size", 999)):
        path = "model." + name.replace("__", ".")
        assert [found for found, _ in points.differ([base, mixture(**{name: value})])] == [path]


def test_what_a_scaling_rule_moves_is_no_difference(tmp_path):
    for name in ("phi_125m", "phi_350m"):
        finished.write(tmp_path / name, registry.get(name))
    moved = {path for path, _ in registry.get("phi_125m").rules}
    found = points.gather(["phi_125m", "phi_350m"], runs_dir=tmp_path)
    assert "optim.lr" in moved and not moved & {path for path, _ in found.differ}


def test_damaged_metrics_are_told_with_file_and_line(tmp_path):
    """Neither as unfinished nor in silence."""
    finished.write(tmp_path / "a", finished.experiment())
    file = finished.write(tmp_path / "b", finished.experiment(steps=9)) / "metrics.jsonl"
    first, last = file.read_text().splitlines()
    file.write_text(f"{first}\n{last[:20]}")  # what a kill leaves
    assert points.gather(["a", "b"], runs_dir=tmp_path).left_out == (("b", "not finished"),)
    file.write_text(f"{first}\n{last[:20]}\n")
    why = f"damaged metrics ({file}, line 2)"
    assert points.gather(["a", "b"], runs_dir=tmp_path).left_out == (("b", why),)
    finished.write(tmp_path / "c", finished.experiment(steps=9), finished=False)
    with pytest.raises(UserError, match="no finished run among b, c; left out, damaged .*: b; left out, not fin.*: c"):
        points.gather(["b", "c"], runs_dir=tmp_path)
    file.write_text(f"\xff\n{last}\n")  # its end can be read, and that is all that counts
    assert len(points.gather(["a", "b"], runs_dir=tmp_path).points) == 2


def test_folders_and_files_that_are_no_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "x").mkdir(parents=True)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "sweep.json").write_text("{}")
    for word, message in (
        ("empty", "empty is no run: the folder is empty"), ("other", "other is no run: the folder holds no experiment"),
        ("no.csv", "no.csv: there is no such file; a file of points has columns params, tokens, loss"),
        ("other/x/", "x is no run: the folder is empty"),
        ("study", "study is a sweep, no run; none of its trials has begun"),
    ):
        with pytest.raises(UserError, match=message):
            points.gather([word if "csv" in word else str(tmp_path / word)], runs_dir=tmp_path)


def test_a_run_whose_name_ends_as_a_files_is_a_run(tmp_path):
    for name, steps in (("phi-data.json", 50), ("b.csv", 100)):
        finished.write(tmp_path / name, finished.experiment(steps=steps))
    found = points.gather(["phi-data.json", "b.csv"], runs_dir=tmp_path).points
    assert [p.name for p in found] == ["phi-data.json", "b.csv"]


def test_losses_of_other_texts_are_refused(tmp_path):
    finished.write(tmp_path / "a", finished.experiment())
    finished.write(tmp_path / "b", finished.experiment(steps=9, sources=(SourceConfig(uri="mine.txt"),)))
    finished.write(tmp_path / "c", finished.experiment(steps=9, tokenizer_kind="bpe"))
    for measure in select.UNIT:
        with pytest.raises(UserError, match="a and b differ in data.sources.*; take those of one text"):
            points.gather(["a", "b"], runs_dir=tmp_path, measure=measure)
    with pytest.raises(UserError, match="a and c differ in data.tokenizer_kind: .* take bits per byte, with --bits"):
        points.gather(["a", "c"], runs_dir=tmp_path)
    assert len(points.gather(["a", "c"], runs_dir=tmp_path, measure="bits_per_byte").points) == 2


def test_digest_knows_what_is_computed_and_no_more():
    base = finished.experiment()
    same = dataclasses.replace(
        base, name="other", model=dataclasses.replace(base.model, dtype="float32", remat="full"),
        mesh=dataclasses.replace(base.mesh, tensor=2),
    )
    assert select.digest(base) == select.digest(same)
    assert len({select.digest(e) for e in (base, finished.experiment(seed=1), finished.experiment(lr=2e-3))}) == 3


numbers = st.floats(1e-3, 1e30)


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=9, unique_by=lambda row: row[:2]))
@settings(max_examples=30, deadline=None)
def test_files_come_back_as_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("files")
    (folder / "p.csv").write_text("loss,tokens,params,more\n" + "".join(f"{c!r},{b!r},{a!r},x\n" for a, b, c in rows))
    keys = ("params", "tokens", "loss")
    (folder / "p.json").write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    for file in ("p.csv", "p.json"):
        found = points.gather([str(folder / file)]).points
        assert [(p.params, p.tokens, p.loss) for p in found] == rows
        assert [p.flops for p in found] == [6 * a * b for a, b, _ in rows]
        assert found[0].name == "p:1"


def test_points_of_a_file_at_one_place_are_seeds(tmp_path):
    (tmp_path / "p.csv").write_text("params,tokens,loss\n2,3,4\n2,3,5\n2,4,3\n")
    found = points.gather([str(tmp_path / "p.csv")]).points
    assert [(p.name, p.loss, p.losses) for p in found] == [("p:1 (2 seeds)", 4.5, (4.0, 5.0)), ("p:3", 3.0, (3.0,))]


def test_flops_and_names_of_a_file_are_taken(tmp_path):
    (tmp_path / "p.json").write_text('[{"params": 2, "tokens": 3, "loss": 4, "flops": 50, "name": "x"}]')
    (one,) = points.read_file(tmp_path / "p.json")
    assert (one.flops, one.name) == (50, "x")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "params,tokens\n1,2\n", "p.csv: has no column loss; it has params, tokens"),
        ("p.csv", "params,tokens,loss\n1,2,3\n1,-2,3\n", "p.csv, point 2: tokens=-2 must be a finite number above 0"),
        ("p.csv", "params,tokens,loss\n1,inf,3\n", "tokens=inf must be a finite number"),
        ("p.csv", "", "p.csv: must hold points with params, tokens, loss"),
        ("p.json", "{", "p.json: cannot be read as JSON"),
        ("p.json", '{"params": 1}', "p.json: must hold points"),
        ("p.json", '[{"params": [1], "tokens": 2, "loss": 3}]', r"params=\[1\] must be a number"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        points.gather([str(tmp_path / name)])


def test_files_have_no_bits(tmp_path):
    (tmp_path / "p.csv").write_text("params,tokens,loss\n1,2,3\n")
    with pytest.raises(UserError, match="no bits per byte"):
        points.gather([str(tmp_path / "p.csv")], measure="bits_per_byte")
