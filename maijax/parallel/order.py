"""The order in which a row's tokens lie on the devices of the mesh's context axis, which gives all equal work.

A later token sees more keys than an earlier one. The row is cut in 2 C pieces for C devices; device i holds pieces
i and 2 C - 1 - i, an early one and a late one.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from maijax.errors import UserError
from maijax.parallel.sharding import Layout, constrain, spread


def pieces(ways: int) -> np.ndarray:
    """The pieces of a row in the order in which they lie, [2 * ways]: two to each device."""
    device = np.arange(ways)
    return np.stack([device, 2 * ways - 1 - device], axis=1).reshape(-1)


def starts(device: jax.Array, ways: int, length: int) -> jax.Array:
    """Where in the row the two pieces on a device start, int32 [2]; pieces of `length` tokens."""
    return jnp.stack([device, 2 * ways - 1 - device]).astype(jnp.int32) * length


def _ways() -> tuple[Layout | None, int]:
    layout = spread()
    return layout, 1 if layout is None else layout.ways("context")


def deal(x_BS: jax.Array | None) -> jax.Array | None:
    """Tokens of each row in the order in which they are to lie; where no row is shared out, as they are.

    For numbers of the data, which are few: each device gets whole rows and keeps its own.
    Raises UserError if the rows do not divide into pieces.
    """
    layout, ways = _ways()
    if x_BS is None or ways == 1:
        return x_BS
    B, S = x_BS.shape
    if S % (2 * ways):
        above = -(-S // (2 * ways)) * 2 * ways
        raise UserError(f"rows of {S} tokens do not divide into 2 x mesh.context {ways} pieces; try {above}")
    cut = x_BS.reshape(B, 2 * ways, S // (2 * ways))
    return constrain(cut[:, pieces(ways)].reshape(B, S), "batch", "sequence")


def collect(x_BSD: jax.Array) -> jax.Array:
    """Undo `deal` for hidden states: each device sends its two pieces to where they belong, and gets two."""
    layout, ways = _ways()
    if layout is None or ways == 1:
        return x_BSD
    x_BSD = constrain(x_BSD, "batch", "sequence", "embed")
    spec = layout.spec(("batch", "sequence", "act_embed"), x_BSD.shape, "hidden states")
    island = jax.shard_map(
        partial(_exchange, ways=ways), mesh=layout.mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return island(x_BSD)


def _exchange(x_BSD: jax.Array, *, ways: int) -> jax.Array:
    """Pieces i and 2 C - 1 - i for pieces 2 i and 2 i + 1.

    Even pieces are the first of an even device or the second of an odd one; odd ones the other way round. So each
    device sends one of each, to devices of which no two are the same: two permutations.
    """
    lies = {int(piece): place // 2 for place, piece in enumerate(pieces(ways))}
    odd = jax.lax.axis_index("context") % 2 == 1
    first, second = jnp.split(x_BSD, 2, axis=1)
    got = []
    for parity, mine in enumerate((jnp.where(odd, second, first), jnp.where(odd, first, second))):
        routes = [(lies[2 * device + parity], device) for device in range(ways)]
        got.append(jax.lax.ppermute(mine, "context", routes))
    return jnp.concatenate(got, axis=1)
