"""Spaces: what a line means, how points are chosen, and what bad ones are told."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maijax import overrides, registry, space
from maijax.errors import UserError
from maijax.space import Choice, Range, Sweep

BASE = registry.get("phi_test")
numbers = st.floats(1e-6, 1e6)


@given(st.tuples(numbers, numbers).filter(lambda p: p[0] < p[1]), st.sampled_from(["log", "lin"]),
       st.none() | st.integers(2, 50), st.randoms(use_true_random=False))
def test_a_range_holds_all_its_points(ends, kind, points, source):
    low, high = ends
    text = f"{kind}:{low!r}..{high!r}" + (f":{points}" if points else "")
    found = space.parse("optim.lr", text)
    assert found == Range(low=low, high=high, log=kind == "log", whole=False, points=points)
    drawn = [*map(float, [found.draw(source), *found.grid()])]
    assert all(low * (1 - 1e-5) <= x <= high * (1 + 1e-5) for x in drawn)
    if points:
        assert drawn[1] == low and drawn[-1] == high
    assert space.split([f"optim.lr={text}"]) == ([], {"optim.lr": text})


@given(st.lists(st.integers(1, 2**31), min_size=2, unique=True))
def test_several_values(values):
    text = ", ".join(map(str, values))
    assert space.parse("train.steps", text) == Choice(values=tuple(map(str, values)))


@given(st.text(max_size=30), st.sampled_from(["optim.lr", "train.steps", "optim.name", "data.sources", "mesh", "nope"]))
def test_any_text_is_parsed_or_refused_in_one_line(text, path):
    try:
        found = space.parse(path, text)
    except UserError as error:
        assert path in str(error)
    else:
        for value in found.grid():
            overrides.check(path, value)


def test_a_logarithmic_grid_is_even():
    found = [float(x) for x in space.parse("optim.lr", "log:1e-4..1e-1:4").grid()]
    assert found == [1e-4, 1e-3, 1e-2, 1e-1]
    found = [float(x) for x in space.parse("optim.lr", "lin:0..0.3:4").grid()]
    assert found == [0, 0.1, 0.2, 0.3]
    assert space.parse("train.steps", "log:1..1000:4").grid() == ["1", "10", "100", "1000"]


def test_settings_that_a_field_takes_are_no_space():
    given = ["data.sources=a,b", "train.prompt=Once, log:1..2", "optim.clip_norm=none", "optim.lr=1e-3", "x.y=1,2", "z"]
    assert space.split(given) == (given, {})
    given = ["optim.name=adamw,muon", "model.tied_head=true,false", "optim.clip_norm=none,1", "optim.lr=log:1..2"]
    fixed, found = space.split(given)
    assert not fixed and list(found) == ["optim.name", "model.tied_head", "optim.clip_norm", "optim.lr"]


def test_a_grid_has_every_point_once():
    sweep = Sweep(base=BASE, space={"optim.lr": "1e-3,1e-2,1e-1", "train.seed": "0,1"}).validate()
    points = [sweep.point(i) for i in range(sweep.count)]
    assert sweep.count == 6 == len({tuple(p.items()) for p in points})
    made = sweep.experiment(points[3])
    assert (made.optim.lr, made.train.seed) == (0.01, 1)


def test_random_points_depend_on_seed_and_number_alone():
    sweep = Sweep(base=BASE, space={"optim.lr": "log:1e-4..1e-1"}, sampler="random", trials=500)
    values = [math.log10(float(sweep.point(i)["optim.lr"])) for i in range(sweep.count)]
    assert values[:50] == [math.log10(float(sweep.point(i)["optim.lr"])) for i in range(50)]
    # Even in the logarithm: each third of the range has about a third, 5 standard deviations off at most.
    thirds = [sum(-4 + i <= v < -3 + i for v in values) for i in range(3)]
    assert all(abs(t - 500 / 3) < 5 * math.sqrt(500 * 2 / 9) for t in thirds)
    assert random.Random("0/0").random() != random.Random("1/0").random()


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ({"optim.lr": "log:0..1:3", "optim.lrr": "1,2"}, ["must begin above 0", "did you mean optim.lr?"]),
        ({"optim.lr": "log:1e-3..1e-1"}, ["a grid needs a number of points"]),
        ({"optim.lr": "lin:2..1:3"}, ["the first number must be below the second"]),
        ({"optim.lr": "lin:1..2:1"}, ["points='1' must be a whole number from 2"]),
        ({"optim.lr": "log:1e-3:3"}, ["must be of the form log:1e-4..1e-1"]),
        ({"train.steps": "lin:1..2.5:3"}, ["whole numbers"]),
        ({"optim.name": "adamw,sgd"}, ["optim.name='sgd' must be adamw, muon, adafactor or lion"]),
        ({"optim.name": "log:1..2:2"}, ["a range is of numbers"]),
        ({"optim.lr": "1,1"}, ["names a value twice"]),
        ({"data.sources": "a,b"}, ["text or several values"]),
        ({"model.attention.kv_heads": "1,3"}, ["kv_heads=3 must divide num_heads=2"]),
        ({}, ["the space is empty"]),
    ],
)
def test_bad_spaces_are_told_all_at_once(lines, parts):
    with pytest.raises(UserError) as caught:
        Sweep(base=BASE, space=lines).validate()
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


def test_what_belongs_to_a_search():
    with pytest.raises(UserError, match="a grid has 2"):
        Sweep(base=BASE, space={"optim.lr": "1,2"}, trials=9).validate()
    with pytest.raises(UserError, match="train.eval_every"):
        base = overrides.apply(BASE, ["train.eval_every=none"])
        Sweep(base=base, space={"optim.lr": "1,2"}, prune="median").validate()


def test_a_registered_sweep_is_found(clean_registry, monkeypatch):
    monkeypatch.setattr(registry, "_sweeps", dict(registry._sweeps))

    @registry.register_sweep
    def my_sweep() -> Sweep:
        """Which rate?"""
        return Sweep(base=BASE, space={"optim.lr": "1e-3,1e-2"})

    assert registry.sweep("my_sweep").name == "my_sweep" and registry.sweep("my_sweep").count == 2
    with pytest.raises(UserError, match="is a sweep, not an experiment"):
        registry.get("my_sweep")


def test_a_registered_space_of_numbers_is_told_how_it_is_written():
    with pytest.raises(UserError, match=r'optim.lr=\[0.001\]: a space is text'):
        space.parse("optim.lr", [0.001])  # pyright: ignore[reportArgumentType]
