"""Initial values: each number is a function of (key, weight path, index), whatever computes it and where.

The generator is Threefry-2x32 with 20 rounds, the one behind jax.random, written out over an index grid: XLA
compiles it five times faster than one jax.random.normal per weight, which would be most of a small model's
start-up, and each device computes just its own shard. Source: Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3".
"""

from __future__ import annotations

import hashlib
import math

import jax
import jax.numpy as jnp

from maijax.weights import Weight

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(
    key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32-20 of uint32 scalars (key) and equally shaped uint32 arrays (counter)."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for five in range(5):
        for distance in _ROTATIONS[five % 2]:
            x = x + y
            y = x ^ ((y << distance) | (y >> (32 - distance)))
        x = x + keys[(five + 1) % 3]
        y = y + keys[(five + 2) % 3] + jnp.uint32(five + 1)
    return x, y


def normal(key: jax.Array, path: str, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 numbers of a weight; `key` is a jax.random key.

    The counter is (index over all leading dims, index in the last), so that each may reach 2**32.
    Raises: ValueError if one of them would not fit.
    """
    if max(math.prod(shape[:-1]), shape[-1]) > 2**32:
        raise ValueError(f"{path}: shape {shape} has more rows or columns than a 32-bit counter")
    words = hashlib.sha256(path.encode()).digest()
    seed = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
    keys = (
        seed[0] ^ jnp.uint32(int.from_bytes(words[:4], "big")),
        seed[1] ^ jnp.uint32(int.from_bytes(words[4:8], "big")),
    )
    row, stride = jnp.zeros(shape, jnp.uint32), 1
    for dim in range(len(shape) - 2, -1, -1):
        row = row + jax.lax.broadcasted_iota(jnp.uint32, shape, dim) * jnp.uint32(stride)
        stride *= shape[dim]
    column = jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
    bits, _ = threefry(keys, (row, column))
    # 23 bits and a half: every value, the ends included, is exact in float32 and lies inside (-1, 1).
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
    return math.sqrt(2.0) * jax.lax.erf_inv(uniform)


def sample(weight: Weight, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Initial values from a weight's declared distribution, float32."""
    if weight.init == "normal":
        return weight.std * normal(key, weight.path, shape)
    return jnp.full(shape, 1.0 if weight.init == "ones" else 0.0, jnp.float32)
