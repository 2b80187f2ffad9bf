"""A weight as the stack of independent matrices that its letters say it is."""

from __future__ import annotations

import math
from typing import Any

import jax

from maijax.weights import Weight

Tree = Any  # nested dict of arrays, by the names in the weights' paths


def is_matrix(weight: Weight) -> bool:
    """Whether something is read as well as written; a norm's scale is not."""
    return bool(weight.reads)


def shape(weight: Weight) -> tuple[int, int, int]:
    """(independent matrices, numbers read, numbers written): [L, D, H, K] is (L, D, H * K).

    What reads nothing counts as matrices of one row.
    """
    stack, reads = len(weight.stack), len(weight.stack) + len(weight.reads)
    size = weight.sizes
    return math.prod(size[:stack]), math.prod(size[stack:reads]), math.prod(size[reads:])


def split(x: jax.Array, weight: Weight) -> jax.Array:
    """The array as [matrices, reads, writes]. Letters lie in this order already, so no data move."""
    return x.reshape(shape(weight))


def join(x: jax.Array, weight: Weight) -> jax.Array:
    """Undoes `split`."""
    return x.reshape(weight.sizes)
