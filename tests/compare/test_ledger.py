"""What was foretold stays as it was written, is scored by the run, and counts only if it came first."""

import concurrent.futures
import dataclasses
import fcntl
import json
import os

import finished
import numpy as np
import pytest

from maijax import cli, plain
from maijax.compare import fits, ledger, points
from maijax.errors import UserError


@pytest.fixture
def fit():
    return fits.fit(grid(), resamples=50)


def grid():
    made = [finished.experiment(layers=n, steps=s) for n in (1, 2, 3, 4) for s in (50, 200, 800)]
    places = [points.of_experiment(e, name=f"p{i}", count="active") for i, e in enumerate(made)]
    return [dataclasses.replace(p, loss=finished.law(p.params, p.tokens) * (1 + 1e-3 * (-1) ** i))
            for i, p in enumerate(places)]


TARGET = {"layers": 6, "steps": 1600}


def foretell(fit, runs, **changes):
    place = points.of_experiment(finished.experiment(**TARGET | changes), name="big", count="active")
    return ledger.foretell(fit, place, settings=("train.steps=1600",), measure="loss", count="active", runs_dir=runs)


def test_a_prediction_is_kept_and_scored(fit, tmp_path):
    entry = foretell(fit, tmp_path)
    assert entry.low < entry.predicted < entry.high and not entry.begun
    assert ledger.write(tmp_path, entry) is entry
    assert ledger.read(tmp_path) == [entry]
    assert [p["name"] for p in entry.points] == [f"p{i}" for i in range(12)]
    assert ledger.scores(tmp_path) == [ledger.Score(entry, "open", "", None)]

    made = finished.experiment(**TARGET)
    finished.write(tmp_path / "big", made, started=finished.later(), loss=entry.predicted * 1.001)
    (score,) = ledger.scores(tmp_path)
    assert (score.standing, score.run) == ("inside", "big")
    assert score.miss == pytest.approx(1e-3)


def test_a_miss_is_a_miss_and_another_seed_is_another_run(fit, tmp_path):
    entry = foretell(fit, tmp_path)
    ledger.write(tmp_path, entry)
    finished.write(tmp_path / "seed", finished.experiment(**TARGET, seed=1), started=finished.later())
    assert ledger.scores(tmp_path)[0].standing == "open"
    made = finished.experiment(**TARGET)
    finished.write(tmp_path / "study" / "big", made, started=finished.later(), loss=entry.high * 2)
    (score,) = ledger.scores(tmp_path)
    assert score.standing == "outside" and score.miss > 0.5


def test_what_was_said_after_the_run_began_is_no_prediction(fit, tmp_path):
    finished.write(tmp_path / "big", finished.experiment(**TARGET), finished=False)
    entry = foretell(fit, tmp_path)
    assert entry.begun == "big"
    ledger.write(tmp_path, entry)
    assert ledger.scores(tmp_path)[0].standing == "too late"


def test_a_date_before_the_prediction_is_found_out_when_it_is_scored(fit, tmp_path):
    """The run was made in another folder, and moved here."""
    ledger.write(tmp_path, foretell(fit, tmp_path))
    folder = finished.write(tmp_path / "big", finished.experiment(**TARGET), started="2026-01-01T00:00:00+00:00")
    (score,) = ledger.scores(tmp_path)
    assert score.standing == "too late" and score.measured is not None
    (folder / "environment.json").unlink()  # then the first file's own date counts
    os.utime(folder / "experiment.json", (0, 0))
    assert ledger.scores(tmp_path)[0].standing == "too late"


def test_what_says_nothing_is_neither_hit_nor_miss(fit, tmp_path):
    """An interval that any loss falls into is kept and told as such; one without an end is refused."""
    wide = dataclasses.replace(fit, noise=np.linspace(-0.5, 0.5, len(fit.noise)))
    entry = foretell(wide, tmp_path)
    assert entry.high > 2 * entry.low and "says nothing" in entry.void
    ledger.write(tmp_path, entry)
    assert ledger.scores(tmp_path)[0].standing == "says nothing"
    finished.write(tmp_path / "big", finished.experiment(**TARGET), started=finished.later(), loss=entry.predicted)
    (score,) = ledger.scores(tmp_path)
    assert (score.standing, score.miss) == ("says nothing", 0)
    endless = dataclasses.replace(fit, noise=np.linspace(-0.5, 1000, len(fit.noise)))
    with pytest.raises(UserError, match="big: 12 points cannot tell its loss, which may be anything from .* to inf"):
        foretell(endless, tmp_path)


def test_what_is_among_the_points_cannot_be_foretold(fit, tmp_path):
    with pytest.raises(UserError, match="big is one of the points, p2; leave that out"):
        foretell(fit, tmp_path, layers=1, steps=800)


def test_a_torn_line_harms_neither_its_neighbours_nor_the_reader(fit, tmp_path):
    entry = foretell(fit, tmp_path)
    ledger.write(tmp_path, entry)
    with open(tmp_path / "ledger.jsonl", "ab") as file:
        file.write(b'{"at": "2026-0')
    other = ledger.write(tmp_path, foretell(fit, tmp_path, seed=1))
    assert ledger.read(tmp_path) == [entry, other]


def test_the_same_prediction_counts_once(fit, tmp_path):
    """However often it is made, by whatever name and in whatever order of the points."""
    entry = ledger.write(tmp_path, foretell(fit, tmp_path))
    again = dataclasses.replace(entry, at=finished.later(), name="other", points=entry.points[::-1])
    assert ledger.write(tmp_path, again) is not again and ledger.read(tmp_path) == [entry]
    with open(tmp_path / "ledger.jsonl", "ab") as file:  # as two machines' files put together
        file.write(file_line := (tmp_path / "ledger.jsonl").read_bytes())
    assert file_line.count(b"\n") == 1
    finished.write(tmp_path / "big", finished.experiment(**TARGET), started=finished.later())
    assert len(ledger.scores(tmp_path)) == 1
    rounded = dataclasses.replace(entry, predicted=entry.predicted * (1 + 1e-8))  # as on another machine
    assert ledger.write(tmp_path, rounded) == entry
    for changed in (dataclasses.replace(entry, measure="bits_per_byte"),
                    dataclasses.replace(entry, points=entry.points[1:])):
        assert ledger.write(tmp_path, changed) is changed
    assert len(ledger.scores(tmp_path)) == 3


@pytest.mark.parametrize("number", [2.34549999, 2.34550001])
def test_the_last_digits_make_no_other_prediction(fit, tmp_path, number):
    entry = ledger.write(tmp_path, dataclasses.replace(foretell(fit, tmp_path), predicted=2.3455))
    assert ledger.kept(tmp_path, dataclasses.replace(entry, at=finished.later(), predicted=number)) == entry


def test_of_equal_predictions_the_earlier_counts_however_the_file_is_ordered(fit, tmp_path):
    late = dataclasses.replace(foretell(fit, tmp_path), at="2026-01-01T12:00:00.000+00:00")
    early = dataclasses.replace(late, at="2026-01-01T12:00:00.000+02:00")  # 10:00
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(plain.to_plain(one)) + "\n" for one in (late, early)))
    assert ledger.read(tmp_path) == [early]
    finished.write(tmp_path / "big", finished.experiment(**TARGET), started="2026-01-01T11:00:00+00:00",
                   loss=late.predicted)
    assert [score.standing for score in ledger.scores(tmp_path)] == ["inside"]


def test_writers_at_once_lose_nothing(fit, tmp_path):
    entry = foretell(fit, tmp_path)
    names = [f"n{i}" for i in range(60)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # a lock holds between open files, of threads too
        list(pool.map(lambda n: ledger.write(tmp_path, dataclasses.replace(entry, name=n, digest=n)), names))
    assert sorted(e.name for e in ledger.read(tmp_path)) == sorted(names)
    assert all(json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines())


def test_a_writer_waits_for_the_one_before_it(fit, tmp_path):
    entry = foretell(fit, tmp_path)
    ledger.write(tmp_path, dataclasses.replace(entry, digest="other"))
    file = tmp_path / "ledger.jsonl"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with open(file, "ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = pool.submit(ledger.write, tmp_path, entry)
            with pytest.raises(concurrent.futures.TimeoutError):
                waiting.result(timeout=0.3)
            assert len(ledger.read(tmp_path)) == 1
        waiting.result(timeout=30)
    assert len(ledger.read(tmp_path)) == 2


def test_a_full_disk_leaves_the_file_as_it_was(fit, tmp_path, monkeypatch):
    entry = foretell(fit, tmp_path)
    ledger.write(tmp_path, entry)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        ledger.write(tmp_path, dataclasses.replace(entry, digest="other"))
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_a_damaged_line_is_named(fit, tmp_path, capsys):
    ledger.write(tmp_path, foretell(fit, tmp_path))
    file = tmp_path / ledger.LEDGER
    good = file.read_text()
    record = json.loads(good)
    file.write_text(f"{json.dumps(record | {'predicted': 'x'})}\n{good}garbage\n")
    entries, damaged = ledger.examine(tmp_path)
    assert len(entries) == 1 and damaged == [1, 3]
    assert cli.main(["fit", "--ledger", "--runs-dir", str(tmp_path)]) == 0
    assert f"{file}: no prediction can be read from line 1, 3" in capsys.readouterr().err
