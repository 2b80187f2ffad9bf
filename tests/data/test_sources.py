import bz2
import gzip
import json
import lzma
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maijax.data import sources
from maijax.errors import UserError


def read(path, *, field="text", errors="strict", counts=None, cache=None):
    counts = counts or sources.Counts()
    return list(sources.documents(str(path), field=field, errors=errors, cache=cache or path, counts=counts))


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("ending", PACK)
def test_compressed_or_not(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACK[ending](jsonl({"text": "one\ntwo"}, {"text": "é"})))
    assert read(path) == ["one\ntwo", "é"]
    path = tmp_path / f"a.TXT{ending}"
    path.write_bytes(PACK[ending]("über\r\nalles\n".encode()))
    assert read(path) == ["über\nalles"]


def test_zstd(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    try:
        import zstandard
    except ImportError:
        path.write_bytes(b"anything")
    else:
        path.write_bytes(zstandard.compress(jsonl({"text": "one"}, {"text": "two"})))
        assert read(path) == ["one", "two"]
        frames = [zstandard.compress(jsonl(*({"text": f"{i} {i * i}"} for i in range(k, k + 9999)))) for k in (0, 9999)]
        path.write_bytes(b"".join(frames))
        assert read(path) == [f"{i} {i * i}" for i in range(2 * 9999)]
        for damaged in (frames[0][:-8], frames[0][: len(frames[0]) // 2], frames[0] + frames[1][:5], b"", b"plain"):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"a\.jsonl\.zst cannot be read"):
                read(path)
        monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="needs the package zstandard"):
        read(path)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_damaged_archives_are_named(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    whole = PACK[ending](jsonl(*({"text": f"story {i * i}"} for i in range(500))))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], bytes(flipped), b"plain text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.jsonl\{ending}.*(cannot be read|not JSON|invalid UTF-8)"):
            read(path)


def test_folder_is_read_in_sorted_order(tmp_path):
    for name in ("b/2.txt", "b/10.txt", "a.md", "c.jsonl", "B.txt", ".hidden/x.txt", ".x.txt", "picture.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jsonl({"text": "c"}) if name.endswith("l") else name.encode())
    assert read(tmp_path) == ["B.txt", "a.md", "b/10.txt", "b/2.txt", "c"]


def test_a_text_file_is_divided_by_end_of_text_lines(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("\ufeff\n\nOne.\n\nMore of one. <|endoftext|>\n<|endoftext|>\r\n  Two.\n\n<|endoftext|>\n")
    assert read(path) == ["One.\n\nMore of one. <|endoftext|>", "  Two."]


def test_blank_documents_are_counted_and_left_out(tmp_path):
    path, counts = tmp_path / "a.jsonl", sources.Counts()
    path.write_bytes(jsonl({"text": ""}, {"text": " \n"}, {"text": "x"}) + b"\n\n")
    assert read(path, counts=counts) == ["x"]
    assert counts.empty == 2
    path = tmp_path / "b.txt"
    path.write_text("a\n<|endoftext|>\n\n<|endoftext|>\nb\n")
    assert read(path, counts=counts) == ["a", "b"]
    assert counts.empty == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"text": "x"', r"a\.jsonl:3: not JSON"),
        (b"[1, 2]", r"a\.jsonl:3: a JSON list; one object per line"),
        (b'{"title": "x", "body": "y"}', r"a\.jsonl:3: no field 'text'; its fields: 'title', 'body'; name one"),
        (b'{"text": null}', r"a\.jsonl:3: field 'text' holds NoneType, not text; name another"),
        (b'{"text": "\xff"}', r"a\.jsonl:3: invalid UTF-8 \(0xff, byte 11 of the line\).*data.errors=replace"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:3: lone surrogate \\ud800"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, told):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "fine"}) + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=told):
        read(path)


def test_another_field(tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(jsonl({"text": "x", "body": "y"}))
    assert read(path, field="body") == ["y"]


def test_invalid_text_is_replaced_on_request_and_counted(tmp_path):
    path, counts = tmp_path / "a.txt", sources.Counts()
    path.write_bytes(b"good\nbad \xff\xfe \xef\xbf\xbd\nend")
    with pytest.raises(UserError, match=r"a\.txt:2: invalid UTF-8"):
        read(path)
    assert read(path, errors="replace", counts=counts) == ["good\nbad \ufffd\ufffd \ufffd\nend"]
    assert counts.replaced == 2
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"text": "a\\ud800b\\ud83d\\ude00"}\n')
    assert read(path, errors="replace", counts=counts) == ["a\ufffdb\U0001f600"]
    assert counts.replaced == 3


@given(st.binary(max_size=60), st.sampled_from([".txt", ".jsonl", ".txt.gz", ".json.xz"]))
def test_any_bytes_give_text_or_a_clear_error(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("any") / f"a{ending}"
    path.write_bytes(content)
    for errors in ("strict", "replace"):
        try:
            for text in read(path, errors=errors):
                assert text.encode() and text.strip()
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: no such file or folder"):
        read(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"no \.jsonl.*file in this folder"):
        read(tmp_path)
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.pdf: unknown kind of file"):
        read(tmp_path / "a.pdf")


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"text": "one"}) + b"broken\n")
    found = sources.documents(str(path), field="text", errors="strict", cache=tmp_path, counts=sources.Counts())
    assert next(found) == "one"
    with pytest.raises(UserError, match=":2: not JSON"):
        next(found)
