"""A worker that is asked to stop does so, whenever it is asked."""

import shutil
import signal
from pathlib import Path

import jax
import pytest
from sweep_parts import tiny

from maijax.errors import UserError
from maijax.space import Sweep
from maijax.sweep import worker
from maijax.sweep.study import Result, Study, newest
from maijax.train import programs
from maijax.train.trainer import Trainer


def test_a_stop_at_start_up_or_in_the_last_evaluation_is_heard(corpus, tmp_path, monkeypatch, quick):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    sweep = Sweep(name="s", base=tiny(corpus, steps=3, eval_every=None), space={"optim.lr": "1e-3,1e-2"})
    folder = Study.create(tmp_path / "s", sweep, {}).folder

    def then_asked(method):
        def wrapped(*args):
            found = method(*args)
            signal.raise_signal(signal.SIGTERM)
            return found
        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(programs, "keep", then_asked(programs.keep))
        assert worker.work(str(folder), 1, 1) == worker.STOPPED
    [trial] = Study.load(folder).trials()
    assert trial.result is None and not trial.running and newest(folder / "trial-0000") == 1

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "finish", then_asked(Trainer.finish))
        assert worker.work(str(folder), 1, 1) == worker.STOPPED
    [trial] = Study.load(folder).trials()  # the next was not begun
    assert trial.result is not None and trial.result.state == "done" and not trial.running


def test_a_bad_cache_folder_is_no_death_of_a_trial(corpus, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAIJAX_CACHE", str(tmp_path / "file"))
    study = Study.create(tmp_path / "s", Sweep(name="s", base=tiny(corpus), space={"optim.lr": "1e-3,1e-2"}), {})
    for _ in range(4):
        with pytest.raises(UserError, match="cache folder"):
            worker.work(str(study.folder), 1, 16)
    assert [(c.trial.deaths, c.trial.result) for c in study.claim(2)] == [(0, None)] * 2


def test_data_that_cannot_be_read_any_more_fail_no_trial(corpus, tmp_path, monkeypatch, quick):
    """Though others were trained before: no value of a trial would mend it."""
    text = Path(shutil.copy(corpus, tmp_path))
    sweep = Sweep(name="s", base=tiny(text, steps=2, eval_every=None), space={"optim.lr": "1e-3,1e-2,1e-1"})
    study = Study.create(tmp_path / "s", sweep, {})
    study.claim(1)[0].release(Result(state="done", step=2, bits_per_byte=3.0))
    text.unlink()
    monkeypatch.setenv("MAIJAX_CACHE", str(tmp_path / "empty"))
    for _ in range(2):
        with pytest.raises(UserError, match="no such file"):
            worker.work(str(study.folder), 1, 16)
    claims = Study.load(study.folder).claim(3)
    assert [(c.trial.number, c.trial.deaths, c.trial.result) for c in claims] == [(1, 0, None), (2, 0, None)]
