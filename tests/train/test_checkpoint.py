"""Checkpoints: what is read is what was written, or it is refused."""

import asyncio
import gc
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maijax.errors import RunError, UserError
from maijax.train import checkpoint
from maijax.train.checkpoint import Checkpoints, Meta, digests
from maijax.train.state import State

DATA = {"seed": 0, "documents": ["a"]}


def small_state(step: int) -> State:
    rng = np.random.default_rng(step)
    w = rng.standard_normal((64, 32)).astype(np.float32)
    return State(
        step=jnp.int32(step),
        params={"layers": {"w": jnp.asarray(w)}, "b": jnp.asarray(w[0], jnp.bfloat16)},
        opt_state=(jnp.int32(step), {"mu": jnp.asarray(w * 2)}),
    )


def meta(step: int, **changes) -> Meta:
    return Meta(**{"step": step, "identity": "e", "data": DATA, "token_hash": "0", "seconds": 1.5} | changes)


def target() -> State:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), small_state(0))


def assert_same(a: State, b: State) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path, keep=2, writer=True) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(small_state(step), meta(step))
    return tmp_path


def read(folder, **wanted):
    with Checkpoints(folder, writer=True) as checkpoints:
        return checkpoints.restore(target(), **{"identity": "e", "data": DATA} | wanted)


def test_newest_comes_back_bitwise_and_old_ones_go(saved):
    state, found = read(saved)
    assert_same(state, small_state(3))
    assert found == meta(3)
    assert sorted(p.name for p in saved.iterdir()) == ["2", "3"]


def test_no_checkpoint_is_none(tmp_path):
    assert read(tmp_path) is None


def test_flipped_bits_are_found_and_the_step_before_is_used(saved):
    flips = np.random.default_rng(0)
    files = [p for p in (saved / "3" / "state").rglob("*") if p.is_file() and "/d/" in str(p)]
    assert files
    keep = shutil.copytree(saved, saved.parent / "keep")
    for _ in range(8):
        shutil.rmtree(saved)
        shutil.copytree(keep, saved)
        file = files[flips.integers(len(files))]
        raw = bytearray(file.read_bytes())
        raw[flips.integers(len(raw))] ^= 1 << int(flips.integers(8))
        file.write_bytes(bytes(raw))
        state, found = read(saved)
        if found.step == 2:  # told and put aside
            assert_same(state, small_state(2))
            assert (saved / "3.corrupt").is_dir()
        else:  # the flip lay in bytes that hold no value
            assert_same(state, small_state(3))


@pytest.mark.parametrize("damage", ["truncate", "remove", "empty"])
def test_damaged_steps_are_put_aside_and_all_damaged_is_an_error(saved, damage):
    for step in ("3", "2"):
        for file in (saved / step / "state").rglob("*"):
            if file.is_file() and "/d/" in str(file):
                if damage == "truncate":
                    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
                elif damage == "remove":
                    file.unlink()
                else:
                    file.write_bytes(b"")
        if step == "3":
            state, found = read(saved)
            assert found.step == 2
            assert_same(state, small_state(2))
    for _ in range(2):  # asking again is no way round it
        with pytest.raises(RunError, match="no sound checkpoint"):
            read(saved)


def test_a_restore_that_fails_leaves_no_noise(capfd):
    """As tensorstore's threads do, after the event loop that waited for their reads is closed."""
    loop = asyncio.new_event_loop()
    loop.close()
    before = sys.unraisablehook
    sys.unraisablehook = checkpoint._of_no_late_reads
    try:
        for late in (lambda: loop.call_soon_threadsafe(print), lambda: 1 / 0):
            class Falls:
                def __del__(self, late=late):
                    late()
            Falls()
            gc.collect()
    finally:
        sys.unraisablehook = before
    said = capfd.readouterr().err
    assert "division by zero" in said and "Event loop is closed" not in said


def test_a_foreign_numbered_folder_blocks_nothing(saved):
    (saved / "99").mkdir()
    with Checkpoints(saved, writer=True) as checkpoints:
        state, found = checkpoints.restore(target(), identity="e", data=DATA)
        assert found.step == 3
        checkpoints.save(small_state(4), meta(4))
    assert read(saved)[1].step == 4
    assert (saved / "99.foreign").is_dir()


def test_a_save_that_orbax_refuses_is_an_error(saved):
    with pytest.raises(RunError, match="refused"), Checkpoints(saved, writer=True) as checkpoints:
        checkpoints.save(small_state(1), meta(1))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("identity", "x", "the experiment"), ("data", {"seed": 1, "documents": ["b"]}, "the documents, the seed")],
)
def test_another_experiment_or_stream_is_refused(saved, field, value, words):
    with pytest.raises(UserError, match=words):
        read(saved, **{field: value})
    assert read(saved)[1].step == 3  # nothing was put aside


def test_a_reader_changes_nothing(saved):
    (saved / "99").mkdir()
    before = sorted(p.name for p in saved.iterdir())
    with Checkpoints(saved, writer=False) as checkpoints:
        assert checkpoints.restore(target(), identity="e", data=None)[1].step == 3
    assert sorted(p.name for p in saved.iterdir()) == before


def test_digest_is_equal_on_every_layout():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 8)), jnp.float32)
    one = [int(d) for d in digests([x])]
    mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    for spec in (("a",), (None, "a"), ()):
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        assert [int(d) for d in digests([jax.device_put(x, where)])] == one


def test_digest_sees_each_bit_and_each_swap():
    x = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    one = int(digests([jnp.asarray(x)])[0])
    for bit in range(0, 32, 5):
        other = x.copy()
        other.view(np.uint32)[7] ^= 1 << bit
        assert int(digests([jnp.asarray(other)])[0]) != one
    x[[3, 4]] = x[[4, 3]]
    assert int(digests([jnp.asarray(x)])[0]) != one
