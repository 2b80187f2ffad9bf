"""Ring attention: keys and values travel round the mesh's context axis, past the queries of every device.

Each device looks at the keys that are with it while the next ones are on their way, and adds up what it sees. Its
memory is that of two devices' keys, whatever the length of the row. The gradient goes round once more: keys travel
together with their own gradients, and scores are computed again.
Source: Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context"; Brandon et al. 2023,
"Striped Attention" (equal work by order); the order itself is that of `maijax.parallel.order`.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from maijax.parallel.order import starts
from maijax.parallel.remat import attended

Look = tuple[jax.Array, jax.Array]
Whole = tuple[jax.Array, jax.Array, jax.Array]


class Looks(Protocol):
    """What one device computes; queries are [B, G, R, S, K], keys and values [B, G, T, K], segments [B, S or T].

    Starts say where in the row the pieces of queries and keys begin. A look is an output in float32, [B, G, R, S, K],
    and the log of its softmax's sum, [B, G, R, S]. To look back is to give the gradients of queries, keys and values
    in float32, given of the whole output: its gradient, its log, and the two's product summed over K.
    Hashable, so that it can be a static argument.
    """

    def look(self, q: jax.Array, q_at: Any, kv: tuple[jax.Array, jax.Array], kv_at: Any) -> Look: ...

    def merge(self, one: Look, other: Look) -> Look: ...

    def look_back(
        self, q: jax.Array, q_at: Any, kv: tuple[jax.Array, jax.Array], kv_at: Any, whole: Whole
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]: ...


def _onward(tree: Any, ways: int) -> Any:
    """What the device before this one has."""
    routes = [(device, (device + 1) % ways) for device in range(ways)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, "context", routes), tree)


def _at(segments: Any, step: Any, ways: int, tokens: int) -> tuple[Any, jax.Array]:
    """Segments, and where the pieces start that are here after so many steps."""
    device = (jax.lax.axis_index("context") - step) % ways
    return segments, starts(device, ways, tokens // 2)


def _round(visit: Any, state: Any, guest: Any, ways: int) -> Any:
    """Fold `visit(step, guest, state)` over the guests after this device's own; each travels while one is looked at."""

    def one(carry: tuple[Any, Any], step: jax.Array) -> tuple[tuple[Any, Any], None]:
        guest, state = carry
        coming = _onward(guest, ways)
        return (coming, visit(step, guest, state)), None

    (guest, state), _ = jax.lax.scan(one, (guest, state), jnp.arange(1, ways - 1))
    return visit(ways - 1, guest, state)  # the last one travels no further


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def ring(
    q_BGRSK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, segments_BS: jax.Array | None, looks: Looks, ways: int
) -> jax.Array:
    """Attention of this device's queries to the keys of all `ways` devices, o_BGRSK in the dtype of q.

    To be called on every device of the context axis, tokens in the order of `maijax.parallel.order`.
    """
    return _forward(q_BGRSK, k_BGTK, v_BGTK, segments_BS, looks, ways)[0]


def _forward(q, k, v, segments, looks, ways):  # noqa: ANN001, ANN202
    tokens = q.shape[3]
    here = _at(segments, 0, ways, tokens)

    def visit(step: Any, guest: Any, seen: Look) -> Look:
        kv, guest_segments = guest
        return looks.merge(seen, looks.look(q, here, kv, _at(guest_segments, step, ways, tokens)))

    coming = _onward(((k, v), segments), ways)
    o, log = _round(visit, looks.look(q, here, (k, v), here), coming, ways)
    o, log = attended((o.astype(q.dtype), log))
    return o, (q, k, v, segments, o, log)


def _backward(looks, ways, saved, g):  # noqa: ANN001, ANN202
    q, k, v, segments, o, log = saved
    tokens = q.shape[3]
    here = _at(segments, 0, ways, tokens)
    whole = (g, log, jnp.sum(o.astype(jnp.float32) * g.astype(jnp.float32), axis=-1))

    def visit(step: Any, guest: Any, state: Any) -> Any:
        kv, guest_segments = guest
        # Gradients travel one step behind: when their last host has added its own, they follow their keys.
        dq, dkv = state[0], _onward(state[1], ways)
        dq_more, dkv_more = looks.look_back(q, here, kv, _at(guest_segments, step, ways, tokens), whole)
        return dq + dq_more, jax.tree.map(jnp.add, dkv, dkv_more)

    coming = _onward(((k, v), segments), ways)
    dq, dkv = _round(visit, looks.look_back(q, here, (k, v), here, whole), coming, ways)
    dk, dv = _onward(dkv, ways)  # home
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


ring.defvjp(_forward, _backward)
