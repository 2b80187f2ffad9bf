import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maijax.data import split
from maijax.errors import UserError


def hashes(texts):
    return np.array([split.content_hash(text) for text in texts], np.uint64)


@given(st.lists(st.lists(st.text(max_size=2), min_size=1, max_size=8), min_size=1, max_size=3), st.floats(0.001, 0.999))
def test_copies_fall_on_one_side_and_both_sides_hold_something(corpora, share):
    found = [hashes(texts) for texts in corpora]
    try:
        sides = split.held_out(found, share, ["s"] * len(found))
    except UserError:
        # Only right if each document is all that some source has.
        assert {t for texts in corpora for t in texts} == {texts[0] for texts in corpora if len(set(texts)) == 1}
        return
    side = {}
    for texts, held in zip(corpora, sides, strict=True):
        assert held.shape == (len(texts),) and not held.all()
        for text, where in zip(texts, held, strict=True):
            assert side.setdefault(text, where) == where
    assert any(held.any() for held in sides)
    plain = [of_source < share * 2**64 for of_source in found]
    if any(held.any() for held in plain) and not any(held.all() for held in plain):
        assert all((a == b).all() for a, b in zip(plain, sides, strict=True))


def test_share_and_stability():
    texts = [f"story {i}" for i in range(5000)]
    held = split.held_out([hashes(texts)], 0.1, ["s"])[0]
    assert 0.085 < held.mean() < 0.115
    assert (split.held_out([hashes(texts[:3000])], 0.1, ["s"])[0] == held[:3000]).all()
    assert (split.held_out([hashes(texts[::-1])], 0.1, ["s"])[0] == held[::-1]).all()
    more = split.held_out([hashes(texts)], 0.2, ["s"])[0]
    assert (more | ~held).all()  # a larger share holds the smaller one


def test_known_hash():
    """The division must never change by itself: these are the numbers of 2026."""
    assert split.content_hash("Once upon a time") == 0xa42a51929ff4b6e4


def test_one_document_cannot_be_divided():
    with pytest.raises(UserError, match=r"all\.txt: 1 different document.*<\|endoftext\|>"):
        split.held_out([hashes(["a", "a"])], 0.1, ["all.txt"])


def test_empty_source():
    with pytest.raises(UserError, match=r"two\.txt is empty"):
        split.held_out([hashes(["a", "b"]), hashes([])], 0.1, ["one.txt", "two.txt"])
