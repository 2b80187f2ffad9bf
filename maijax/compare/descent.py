"""Many small robust fits at once: minimise the Huber loss of log-sum-exp laws, vectorised over fits and starts.

Unknowns of a fit are theta = [e, a_1.., w_1..]: log L = log(exp(e) + sum_k exp(a_k - exp(w_k) z_k)), z_k the centred
log of a variable, which keeps its factor and exponent apart; every term and exponent is above 0. Source: Hoffmann et
al., arXiv 2203.15556, section 3.3 and appendix D.2. Five unknowns need no limited memory: each fit keeps its whole
inverse Hessian (BFGS), with the line search of Lewis and Overton (2013) for losses with kinks, which Huber's nearly is.
All fits step together, so a thousand of them are a few hundred calls of numpy.

Letters: R fits, P unknowns, K variables, n points.
"""

from __future__ import annotations

import itertools

import numpy as np

DELTA = 1e-3  # where Huber's square turns into a line; Hoffmann et al.
_GRID = np.geomspace(0.03, 2.0, 12)  # exponents that starts are tried at
_STARTS = 12  # the best of them are descended from
_ITERATIONS = 1000
_SLOPE = 1e-8  # largest entry of the gradient where a fit is done
_GAIN, _FLAT = 1e-12, 25  # and it is done after so many looks without so much of a gain
_ARMIJO, _WOLFE = 1e-4, 0.9


def fit(y: np.ndarray, z: np.ndarray, *, near: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(theta [R, P], objective [R]) of R sets of logs of losses y [R, n] at z [K, n].

    Each starts from the best of a grid of exponents, with the rest by least squares. With `near` [P], a fit of similar
    values, only from there and from the single best: enough for resamples.
    """
    begin = starts(y, z, _STARTS if near is None else 1)
    if near is not None:
        begin = np.concatenate([begin, np.broadcast_to(near, (len(y), 1, len(near)))], axis=1)
    many = begin.shape[1]
    found, loss = minimise(begin.reshape(-1, begin.shape[2]), np.repeat(y, many, axis=0), z)
    found, loss = found.reshape(begin.shape), loss.reshape(-1, many)
    best, rows = np.argmin(loss, axis=1), np.arange(len(y))
    return found[rows, best], loss[rows, best]


def starts(y: np.ndarray, z: np.ndarray, many: int) -> np.ndarray:
    """The best of a grid of exponents for each row of y, their terms by relative least squares: [R, many, P]."""
    losses, missed, thetas = np.exp(y), [], []
    weight = np.exp(-y.mean(axis=0))  # near enough the same for every row, and not that of a few wild ones
    for exponents in itertools.product(_GRID, repeat=len(z)):
        decays = [np.exp(-a * one) for a, one in zip(exponents, z, strict=True)]
        basis = np.stack([np.ones(z.shape[1]), *decays])
        terms = (losses * weight) @ np.linalg.pinv(basis * weight)  # [R, 1+K]
        terms = np.maximum(terms, 1e-3 * losses.min(axis=1, keepdims=True))
        missed.append(np.abs((losses - terms @ basis) * weight).sum(axis=1))
        shape = np.broadcast_to(np.log(exponents), (len(y), len(z)))
        thetas.append(np.concatenate([np.log(terms), shape], axis=1))
    order = np.argsort(np.stack(missed, axis=1), axis=1)[:, :many]
    return np.take_along_axis(np.stack(thetas, axis=1), order[:, :, None], axis=1)


def objective(theta: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean of the residuals' Huber loss over DELTA [R], its gradient [R, P])."""
    total, slopes = log_loss(theta, z)
    residual = total - y
    size = np.abs(residual)
    loss = np.where(size <= DELTA, residual**2 / (2 * DELTA), size - DELTA / 2)
    pull = np.clip(residual / DELTA, -1.0, 1.0) / y.shape[1]
    return loss.mean(axis=1), (slopes @ pull[:, :, None])[:, :, 0]


def log_loss(theta: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log L [R, n], its derivatives [R, P, n]) of laws theta [R, P] at z [K, n]."""
    count = len(z)
    exponents = np.exp(theta[:, 1 + count :, None])
    terms = np.repeat(theta[:, : 1 + count, None], z.shape[1], axis=2)
    terms[:, 1:] -= exponents * z
    top = terms.max(axis=1, keepdims=True)
    share = np.exp(terms - top)
    total = share.sum(axis=1, keepdims=True)
    share /= total
    return (top + np.log(total))[:, 0], np.concatenate([share, -share[:, 1:] * exponents * z], axis=1)


def curvature(theta: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A first Hessian [R, P, P]: Gauss-Newton's, with the weights of iterated least squares."""
    total, slopes = log_loss(theta, z)
    weight = 1 / np.maximum(np.abs(total - y), DELTA) / y.shape[1]
    hessian = (slopes * weight[:, None]) @ slopes.swapaxes(1, 2)
    scale = np.trace(hessian, axis1=1, axis2=2)[:, None, None] / theta.shape[1]
    return hessian + (1e-6 * scale + 1e-9) * np.eye(theta.shape[1])


def minimise(theta: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(theta [R, P], objective [R]) at the bottom of each valley, from theta [R, P]."""
    with np.errstate(over="ignore", invalid="ignore"):  # a step that far gives no number, and is not taken
        return _minimise(theta, y, z)


def _minimise(theta: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best, lowest = theta.copy(), np.full(len(theta), np.inf)
    active = np.arange(len(theta))
    value, slope = objective(theta, y, z)
    inverse = np.linalg.inv(curvature(theta, y, z))
    direction = _down(inverse, slope)
    low, high, step = np.zeros(len(theta)), np.full(len(theta), np.inf), np.ones(len(theta))
    flat = np.zeros(len(theta), int)
    for _ in range(_ITERATIONS):
        tried = theta + step[:, None] * direction
        new, new_slope = objective(tried, y, z)
        along, new_along = _dot(slope, direction), _dot(new_slope, direction)
        falls = new <= value + _ARMIJO * step * along  # false where it is not a number
        taken = falls & (new_along >= _WOLFE * along)
        flat = np.where(falls & (new < value - _GAIN), 0, flat + 1)

        # Where the step will not do: halve it, or double it.
        high = np.where(falls, high, step)
        low = np.where(falls & ~taken, step, low)
        step = np.where(np.isinf(high), 2 * low, (low + high) / 2)

        # Where it does: learn the curvature from it, and go on from there.
        at = np.flatnonzero(taken)
        moved, bent = tried[at] - theta[at], new_slope[at] - slope[at]
        inverse[at] = _learn(inverse[at], moved, bent)
        theta[at], value[at], slope[at] = tried[at], new[at], new_slope[at]
        direction[at] = _down(inverse[at], slope[at])
        low[at], high[at], step[at] = 0.0, np.inf, 1.0

        done = (np.abs(slope).max(axis=1) < _SLOPE) | (flat >= _FLAT)
        best[active], lowest[active] = theta, value
        if done.all():
            break
        if done.mean() > 0.1:  # the rest goes on alone
            stay = ~done
            active, theta, y, value, slope = active[stay], theta[stay], y[stay], value[stay], slope[stay]
            inverse, direction, flat = inverse[stay], direction[stay], flat[stay]
            low, high, step = low[stay], high[stay], step[stay]
    return best, lowest


def _down(inverse: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return -(inverse @ slope[:, :, None])[:, :, 0]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("rp,rp->r", a, b)


def _learn(inverse: np.ndarray, moved: np.ndarray, bent: np.ndarray) -> np.ndarray:
    """BFGS's update of inverse Hessians [R, P, P]; where a step taught nothing, they stay."""
    taught = _dot(moved, bent)
    clear = taught > np.maximum(1e-12 * np.sqrt(_dot(moved, moved) * _dot(bent, bent)), 1e-200)
    rate = (clear / np.where(clear, taught, 1.0))[:, None, None]
    left = np.eye(moved.shape[1]) - rate * moved[:, :, None] * bent[:, None, :]
    return left @ inverse @ left.swapaxes(1, 2) + rate * moved[:, :, None] * moved[:, None, :]
