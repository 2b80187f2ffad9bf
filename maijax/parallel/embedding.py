"""Looking up tokens in a table that is shared out over many devices: the table stays where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from maijax.parallel.sharding import Layout


def fits(layout: Layout, tokens: Sequence[int]) -> bool:
    """Whether `lookup` can share out [B, S] tokens: a step of generation may have fewer than there are devices."""
    B, S = tokens
    return not B % layout.ways(*layout.axes("batch")) and not S % layout.ways(*layout.axes("residual_sequence"))


def lookup(table_VD: jax.Array, tokens_BS: jax.Array, layout: Layout, dtype: Any) -> jax.Array:
    """Return the tokens' rows, [B, S, D] in ``dtype``, laid out as ("batch", "residual_sequence", "embed").

    The float32 table lies as at rest, [vocab, embed]. The tokens, 4 bytes each, go to every device that holds a
    part of the rows; each finds its share of D of its part of the vocabulary, and these are exchanged for whole
    rows of its own tokens. The gradient goes the same way back and is added up in float32 where the table lies.

    Raises: UserError if the sizes do not divide over the mesh.
    """
    table_spec = layout.spec(("vocab", "embed"), table_VD.shape, "the embedding's table [V, D]")
    tokens_spec = layout.spec(("batch", "sequence"), tokens_BS.shape, "the embedding's tokens [B, S]")
    out_spec = layout.spec(("batch", "residual_sequence"), tokens_BS.shape, "the embedding's output [B, S]")
    # Devices that share out D have other rows of the batch, other tokens of the row, or copies of the tokens.
    shared, tensor = layout.axes("embed"), layout.axes("vocab")
    rows = tuple(a for a in shared if a in layout.axes("batch"))
    parts = tuple(a for a in shared if a in layout.axes("sequence"))
    copies = tuple(a for a in shared if a not in rows + parts)
    assert rows + parts + copies == shared  # the order in which D is put together below

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        if rows:
            tokens = jax.lax.all_gather(tokens, rows, axis=0, tiled=True)
        if parts:
            tokens = jax.lax.all_gather(tokens, parts, axis=1, tiled=True)
        held, width = table.shape
        if tensor:  # entries that other devices hold become one past the end, where `fill` finds 0
            tokens = tokens - jax.lax.axis_index(tensor) * held
            tokens = jax.numpy.where((tokens >= 0) & (tokens < held), tokens, held)
        x = table.at[tokens].get(mode="fill", fill_value=0).astype(dtype)
        x = x.reshape(x.shape[0], layout.ways(*parts), layout.ways(*tensor), -1, width)
        if tensor:  # first, since it leaves less to send: one device of each sum has the row
            x = jax.lax.psum_scatter(x, tensor, scatter_dimension=2, tiled=True)
        # [rows of the group, parts of the row, tokens, rows' shares of D, parts' shares of D, D]
        x = x.reshape(x.shape[0], x.shape[1], -1, 1, 1, width)
        if parts:
            x = jax.lax.all_to_all(x, parts, split_axis=1, concat_axis=4, tiled=True)
        if rows:
            x = jax.lax.all_to_all(x, rows, split_axis=0, concat_axis=3, tiled=True)
        return x.reshape(x.shape[0], x.shape[2], -1, 1, width)

    placed = (*out_spec, None, copies or None, None)
    island = jax.shard_map(
        local, mesh=layout.mesh, in_specs=(table_spec, tokens_spec), out_specs=PartitionSpec(*placed), check_vma=False
    )
    x = island(table_VD, tokens_BS)
    # Copies are gathered out here, where the compiler knows that their gradients are equal and takes one of them.
    axes = ("batch", "residual_sequence", None, None, None)
    x = jax.lax.with_sharding_constraint(x, layout.sharding(axes, x.shape, "the embedding's output"))
    return x.reshape(*tokens_BS.shape, table_VD.shape[1])
