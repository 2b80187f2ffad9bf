"""Small corpora made up here; nothing is fetched."""

import random

import numpy as np
import pytest
from hypothesis import settings

from maijax.data import tokenizer
from maijax.data.store import Store, Writer

settings.register_profile("data", deadline=None)  # times say nothing on a busy machine
settings.load_profile("data")

WORDS = (
    "the a king queen little tree swan sang slept and then but over under river house said went was "
    "golden old young sea moon snow 12 3 \"Come!\" he she it's far-away soldier tin match nightingale"
).split()


def pytest_configure(config):
    config.addinivalue_line("markers", "network: fetches something; run with -m network")


def pytest_collection_modifyitems(config, items):
    if "network" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("network"):
                item.add_marker(pytest.mark.skip(reason="needs the network; run with -m network"))


def story(seed: int, paragraphs: int = 4) -> str:
    chance = random.Random(seed)
    return "\n\n".join(
        " ".join(chance.choice(WORDS) for _ in range(chance.randint(5, 60))) + "." for _ in range(paragraphs)
    )


@pytest.fixture(scope="session")
def stories() -> list[str]:
    return [story(seed) for seed in range(40)]


@pytest.fixture(scope="session")
def small_tokenizer(stories) -> tokenizer.Tokenizer:
    return tokenizer.train(stories, vocab_size=340, kind="bpe")


class Numbers:
    """Stands for a tokenizer where documents are given as numbers; each token is one byte of text."""

    vocab_size, bos, eos, pad = 60_000, 1, 2, 0
    piece_bytes = np.ones(vocab_size, np.int32)
    piece_bytes[:3] = 0


@pytest.fixture(scope="session")
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def numbered(tmp_path):
    """Makes a store of documents of so many tokens (BOS and EOS besides), every token different."""
    made = iter(range(1000))

    def make(lengths) -> Store:
        folder = tmp_path / f"store{next(made)}"
        writer, number = Writer(folder, Numbers()), 3
        for length in lengths:
            writer.add("x" * length, np.arange(number, number + length, dtype=np.int32))
            number += length
        writer.close()
        return Store(folder)

    return make
