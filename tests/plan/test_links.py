"""Which links a mesh axis gets, and how long collectives take over them, against hand calculation."""

import pytest

from maijax import registry
from maijax.config import MESH_AXES
from maijax.plan.links import Piece, lay

LINK = 90e9  # v5p, one way


def mesh(**sizes):
    return {axis: sizes.get(axis, 1) for axis in MESH_AXES}


def test_whole_axes_of_the_torus_are_rings():
    links = lay(registry.topology("v5p:8x8x8"), mesh(fsdp=64, tensor=8))
    assert links.pieces["tensor"] == (Piece(8, 2 * LINK),)
    assert links.pieces["fsdp"] == (Piece(8, 2 * LINK), Piece(8, 2 * LINK))
    gigabyte = 1e9
    assert links.seconds("all-gather", ("tensor",), gigabyte) == pytest.approx(7 / 8 * gigabyte / (2 * LINK))
    # Over two axes of the torus the links of both carry.
    assert links.seconds("all-gather", ("fsdp",), gigabyte) == pytest.approx(63 / 64 * gigabyte / (4 * LINK))
    assert links.seconds("reduce-scatter", ("fsdp",), gigabyte) == links.seconds("all-gather", ("fsdp",), gigabyte)
    assert links.seconds("all-reduce", ("fsdp",), gigabyte) == 2 * links.seconds("all-gather", ("fsdp",), gigabyte)
    # Source: scaling-book, an all-to-all on a ring takes a quarter of the gather of all its data.
    assert links.seconds("all-to-all", ("tensor",), gigabyte) == pytest.approx(8 * gigabyte / (4 * 2 * LINK))


def test_a_small_slice_of_v6e_does_not_wrap():
    links = lay(registry.topology("v6e:8x16"), mesh(fsdp=16, tensor=8))
    assert links.pieces["tensor"] == (Piece(8, LINK),)
    assert links.pieces["fsdp"] == (Piece(16, 2 * LINK),)


def test_an_axis_of_the_torus_may_be_shared():
    links = lay(registry.topology("v5p:8x8x8"), mesh(fsdp=128, tensor=4))
    assert links.pieces["tensor"] == (Piece(4, LINK),)  # a line inside a ring
    # What is left of that ring is crossed by four neighbours at once.
    assert sorted(links.pieces["fsdp"], key=lambda p: p.size) == [
        Piece(2, 2 * LINK / 4), Piece(8, 2 * LINK), Piece(8, 2 * LINK),
    ]


def test_two_devices_of_one_chip_share_its_links():
    links = lay(registry.topology("tpu7x:4x4x4"), mesh(fsdp=64, tensor=2))
    assert links.pieces["tensor"][0].size == 2 and links.pieces["tensor"][0].rate > 2 * LINK
    assert links.pieces["fsdp"] == (Piece(4, LINK), Piece(4, LINK), Piece(4, LINK))


def test_slices_exchange_what_their_devices_hold():
    links = lay(registry.topology("v5p:8x8x8", slices=2), mesh(replica=2, fsdp=512))
    size, scale_out = 1e9, 50e9 / 8
    assert links.seconds("all-reduce", ("replica",), size) == pytest.approx(2 * size / 2 / scale_out)


def test_an_nvlink_domain_and_beyond():
    nvlink, network = 360e9, 45e9
    links = lay(registry.topology("h100:64x8"), mesh(data=64, tensor=8))
    assert links.seconds("all-gather", ("tensor",), 1e9) == pytest.approx(7 / 8 * 1e9 / nvlink)
    assert links.seconds("all-reduce", ("data",), 1e9) == pytest.approx(2 * 63 / 64 * 1e9 / network)
    links = lay(registry.topology("h100:64x8"), mesh(fsdp=512))
    # Eight cards fetch a part each, and NVLink hands it round.
    assert links.seconds("all-gather", ("fsdp",), 1e9) == pytest.approx(63 / 64 * 1e9 / (8 * network))
    links = lay(registry.topology("h100:1x8"), mesh(fsdp=4, tensor=2))
    assert links.seconds("all-gather", ("fsdp",), 1e9) == pytest.approx(3 / 4 * 1e9 / nvlink)
    links = lay(registry.topology("h100:2x8"), mesh(expert=16))
    assert links.seconds("all-to-all", ("expert",), 1e9) == pytest.approx(1e9 * 8 / 16 / network)


def test_bytes_moved():
    links = lay(registry.topology("v5p:8x8x8"), mesh(fsdp=64, tensor=8))
    assert links.moved("all-gather", ("tensor",), 800) == 700
    assert links.moved("all-reduce", ("tensor",), 800) == 1_400
    assert links.moved("permute", ("tensor",), 800) == 800
    assert links.moved("all-gather", ("data",), 800) == 0
