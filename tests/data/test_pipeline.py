import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maijax.config import DataConfig, SourceConfig
from maijax.data import pipeline
from maijax.errors import RunError

SEQ_LEN, BATCH = 24, 12


@pytest.fixture(scope="module")
def config(tmp_path_factory, stories):
    folder = tmp_path_factory.mktemp("texts")
    for name, texts in (("one", stories[:25]), ("two", stories[25:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    weights = {"one": 0.7, "two": 0.3}
    return DataConfig(
        sources=tuple(SourceConfig(uri=str(folder / f"{n}.jsonl"), weight=w) for n, w in weights.items()),
        held_out=0.2,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(config, cache):
    return pipeline.open_data(config, vocab_size=320, seq_len=SEQ_LEN, seed=5, cache=cache)


def take(stream, count):
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


@pytest.fixture(scope="module")
def reference(data):
    """Ten steps, built row by row from what each row is by definition."""
    steps = []
    for step in range(10):
        rows = [data.train[row] for row in range(step * BATCH, (step + 1) * BATCH)]
        steps.append({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return steps


def same(a, b):
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() and a[name].dtype == b[name].dtype for name in a)


def rolled(digests):
    value = pipeline.START_HASH
    for digest in digests:
        value = pipeline.roll(value, digest)
    return value


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 12])
def test_any_number_of_hosts_reads_the_same(data, reference, hosts):
    share = BATCH // hosts
    parts = [
        take(pipeline.batches(data, batch_size=BATCH, rows=range(host * share, (host + 1) * share)), 10)
        for host in range(hosts)
    ]
    alone = [digest for _, digest in take(pipeline.batches(data, batch_size=BATCH), 10)]
    for step, expected in enumerate(reference):
        assert all(part[step][0]["tokens"].shape == (BATCH // hosts, SEQ_LEN) for part in parts)
        same({name: np.concatenate([part[step][0][name] for part in parts]) for name in expected}, expected)
    together = [sum(part[step][1] for part in parts) % 2**64 for step in range(10)]
    assert together == alone and rolled(together) == rolled(alone)


@pytest.mark.parametrize("start", [0, 1, 7, 10**9])
def test_any_start(data, start):
    whole = take(pipeline.batches(data, batch_size=BATCH, start_step=start), 3)
    for step, (batch, digest) in enumerate(whole):
        later, again = take(pipeline.batches(data, batch_size=BATCH, start_step=start + step), 1)[0]
        same(later, batch)
        assert again == digest


def test_any_batch_size_reads_the_same_rows(data, reference):
    wanted = np.concatenate([batch["tokens"] for batch in reference])
    for size in (1, 5, 40):
        read = np.concatenate([b["tokens"] for b, _ in take(pipeline.batches(data, batch_size=size), 120 // size)])
        assert (read == wanted[: len(read)]).all()


def test_workers_read_the_same(data, reference):
    stream = pipeline.batches(data, batch_size=BATCH, workers=2)
    for (batch, _), expected in zip(take(stream, 10), reference, strict=True):
        same({name: batch[name] for name in expected}, expected)


def test_a_dead_worker_ends_the_run_with_a_word(data):
    import multiprocessing

    stream = pipeline.batches(data, batch_size=BATCH, workers=1)
    next(stream)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RunError, match="reading the training data failed"):
        for _ in range(10_000):
            next(stream)
    assert time.monotonic() - began < 15
    stream.close()


def test_an_error_while_reading_is_told(data, monkeypatch):
    def broken(self, row):
        raise OSError("disk gone")

    monkeypatch.setattr(pipeline.Train, "__getitem__", broken)
    stream = pipeline.batches(data, batch_size=BATCH)
    with pytest.raises(RunError, match="reading the training data failed .*disk gone"):
        next(stream)


def test_rows_that_several_hosts_read_are_counted_once(data, reference):
    shares = [((0, 1, 6, 7), (0, 1, 6, 7)), ((4, 5, 6, 7), (4, 5)), (range(12), (2, 3, 8, 9, 10, 11))]
    parts = [
        take(pipeline.batches(data, batch_size=BATCH, rows=rows, counted=counted), 3) for rows, counted in shares
    ]
    for step, (_, alone) in enumerate(take(pipeline.batches(data, batch_size=BATCH), 3)):
        for (rows, _), part in zip(shares, parts, strict=True):
            same({name: part[step][0][name] for name in reference[step]},
                 {name: array[list(rows)] for name, array in reference[step].items()})
        assert sum(part[step][1] for part in parts) % 2**64 == alone


def test_the_mixture_has_its_shares(data):
    counts = [0, 0]
    for row in range(1000):
        counts[data.train.mixture(row)[0]] += 1
    assert counts == [700, 300]


def test_batches_hold_what_the_contract_says(data):
    batch, digest = take(pipeline.batches(data, batch_size=BATCH), 1)[0]
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "tokens": ("int32", (BATCH, SEQ_LEN)), "targets": ("int32", (BATCH, SEQ_LEN)),
        "segments": ("int32", (BATCH, SEQ_LEN)), "positions": ("int32", (BATCH, SEQ_LEN)),
        "weights": ("float32", (BATCH, SEQ_LEN)),
    }
    assert isinstance(digest, int) and 0 <= digest < 2**64
    assert batch["tokens"].max() < data.tokenizer.vocab_size and (batch["segments"] > 0).all()
    assert (batch["weights"] == (batch["tokens"] != data.tokenizer.eos)).all()


def test_digest_sees_each_token_and_row(data):
    row = data.train[4]
    before = pipeline.row_digest(4, row)
    assert pipeline.row_digest(5, row) != before
    for name, place in (("tokens", 0), ("tokens", 20), ("targets", -1)):
        changed = {key: array.copy() for key, array in row.items()}
        changed[name][place] += 1
        assert pipeline.row_digest(4, changed) != before


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=6))
def test_the_rolling_hash_knows_the_order(digests):
    value = rolled(digests)
    assert len(value) == 16 and int(value, 16) >= 0
    assert rolled(digests[:-1]) != value
    if digests[0] != digests[1]:
        assert rolled([digests[1], digests[0], *digests[2:]]) != value


def test_fingerprint_names_what_differs(config, cache, data):
    def opened(config=config, **change):
        return pipeline.open_data(config, cache=cache, **{"vocab_size": 320, "seq_len": SEQ_LEN, "seed": 5, **change})

    assert opened().fingerprint == data.fingerprint and len(data.fingerprint) == 16
    other_weight = dataclasses.replace(config.sources[0], weight=0.6)
    changes = {
        "the seed (5 then, 6 now)": opened(seed=6),
        f"seq_len ({SEQ_LEN} then, 8 now)": opened(seq_len=8),
        "the sources' weights ([7, 3] then, [2, 1] now)": opened(
            dataclasses.replace(config, sources=(other_weight, config.sources[1]))
        ),
        "the tokenizer": opened(vocab_size=300),
        "the documents": opened(dataclasses.replace(config, sources=config.sources[:1])),
    }
    for told, other in changes.items():
        assert other.fingerprint != data.fingerprint
        assert told in pipeline.differences(data.identity, other.identity)
    as_stored = json.loads(json.dumps(data.identity))
    assert pipeline.differences(as_stored, data.identity) == []
    shared = opened(dataclasses.replace(config, held_out=0.4))
    assert "the held-out share" in pipeline.differences(data.identity, shared.identity)


def test_a_workers_count_or_field_order_is_no_difference(config, cache, data):
    other = pipeline.open_data(
        dataclasses.replace(config, workers=3), vocab_size=320, seq_len=SEQ_LEN, seed=5, cache=cache
    )
    assert other.fingerprint == data.fingerprint


def test_held_out_and_other_sources(config, cache, data):
    for rows in (data, data.held_out):
        found = list(pipeline.held_out_batches(rows, 4))
        assert sum(text_bytes for _, text_bytes in found) == data.held_out.text_bytes
        assert sum(batch["weights"].sum() for batch, _ in found) == data.held_out.tokens
    whole = pipeline.open_source(config.sources[0], data.tokenizer, seq_len=SEQ_LEN, cache=cache)
    part = data.parts[0]
    assert whole.text_bytes == part.train.meta.text_bytes + part.held_out.meta.text_bytes
    assert whole.documents == 25


def test_summary(data):
    one, two = data.summary
    assert one["uri"].endswith("one.jsonl") and one["train"]["documents"] + one["held_out"]["documents"] == 25
    assert two["train"]["tokens"] > two["train"]["documents"] and two["empty"] == two["replaced"] == 0


def test_nothing_heavy_is_imported(data):
    """Preparing text files needs no TFDS and never TensorFlow."""
    import subprocess
    import sys

    code = (
        "import sys, maijax.data.pipeline\n"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
