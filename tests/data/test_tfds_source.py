import sys

import numpy as np
import pytest

from maijax.data import sources, tfds_source
from maijax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


class TinyTales(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        text, number = tfds.features.Text(), tfds.features.Scalar(np.int32)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"text": text, "body": text, "year": number})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 5), "test": self._generate_examples(5, 7)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, {"text": f"tale {i} é", "body": "" if i else "only", "year": i}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def read(uri, home, field="text", counts=None):
    counts = counts or sources.Counts()
    return list(sources.documents(uri, field=field, errors="strict", cache=home / "cache", counts=counts))


def test_parse():
    assert tfds_source.parse("tfds:a") == ("a", "train")
    assert tfds_source.parse("tfds:a/b:test") == ("a/b", "test")
    assert tfds_source.parse("tfds:a/b:1.0.0") == ("a/b:1.0.0", "train")
    assert tfds_source.parse("tfds:a:1.0.0:train[:10%]") == ("a:1.0.0", "train[:10%]")
    assert tfds_source.parse("tfds:a:train[:10%]+test") == ("a", "train[:10%]+test")
    with pytest.raises(UserError, match="no name"):
        tfds_source.parse("tfds:")


def test_a_dataset_is_prepared_and_read_without_tensorflow(home, capsys):
    tales = {f"tale {i} é" for i in range(5)}
    assert set(read("tfds:tiny_tales", home)) == tales
    assert read("tfds:tiny_tales", home) == read("tfds:tiny_tales:1.2.0:train", home)
    assert set(read("tfds:tiny_tales:test", home)) == {"tale 5 é", "tale 6 é"}
    assert len(read("tfds:tiny_tales:train[:40%]", home)) == 2
    counts = sources.Counts()
    assert read("tfds:tiny_tales", home, field="body", counts=counts) == ["only"] and counts.empty == 4
    assert all(path.is_file() for path in sources.files("tfds:tiny_tales", home / "cache"))
    assert "tensorflow" not in sys.modules
    assert capsys.readouterr().out == ""


def test_what_is_wrong_is_told(home):
    read("tfds:tiny_tales", home)
    with pytest.raises(UserError, match="no field 'story'; its fields: 'body', 'text', 'year'"):
        read("tfds:tiny_tales", home, field="story")
    with pytest.raises(UserError, match="record 0: field 'year' is a .*must be text"):
        read("tfds:tiny_tales", home, field="year")
    with pytest.raises(UserError, match="its splits: "):
        read("tfds:tiny_tales:validation", home)
    with pytest.raises(UserError, match="TFDS knows no dataset 'no_such_tales'"):
        read("tfds:no_such_tales", home)


def test_a_damaged_file_is_named(home):
    read("tfds:tiny_tales", home)
    path = next((home / "tfds").rglob("*train.array_record*"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="tiny_tales"):
        read("tfds:tiny_tales", home)
    flipped = bytearray(content)
    flipped[content.index(b"tale") if b"tale" in content else 200] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match="tfds:tiny_tales record"):
        read("tfds:tiny_tales", home)
