"""Early stopping, beside Optuna's pruner and by hand."""

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maijax.sweep import prune

optuna.logging.set_verbosity(optuna.logging.ERROR)
curves = st.lists(st.floats(1, 9), min_size=1, max_size=6).map(lambda v: {10 * (i + 1): x for i, x in enumerate(v)})


@settings(max_examples=40)
@given(curves, st.lists(curves, min_size=4, max_size=8))
def test_median_is_optunas(curve, others):
    others = [other for other in others if max(curve) in other]
    if len(others) < prune.ENOUGH:
        return
    study = optuna.create_study()
    for other in others:
        study.add_trial(optuna.create_trial(value=min(other.values()), intermediate_values=other))
    # Optuna holds the best so far of a trial against the median of the others' values at the step.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=prune.ENOUGH)
    trial = optuna.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values=curve)
    assert prune.loses("median", curve, others) == pruner.prune(study, trial)


def test_halving_keeps_a_third_at_each_rung():
    at = {n: {10: float(n), 20: float(n), 30: float(n)} for n in range(9)}
    first = {n: {10: curve[10]} for n, curve in at.items()}
    assert [n for n in at if not prune.loses("halving", first[n], [first[m] for m in at if m != n])] == [0, 1, 2]
    second = {n: {10: curve[10], 20: curve[20]} for n, curve in at.items()}  # no rung
    assert not any(prune.loses("halving", second[n], [second[m] for m in at if m != n]) for n in at)
    assert [n for n in at if not prune.loses("halving", at[n], [at[m] for m in at if m != n])] == [0, 1, 2]


@pytest.mark.parametrize("rule", ["none", "median", "halving"])
def test_nobody_loses_alone(rule):
    assert not prune.loses(rule, {10: 9.0}, [{10: 1.0}] * 3) and not prune.loses(rule, {}, [])
