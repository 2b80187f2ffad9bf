"""Documents of a TensorFlow Datasets dataset stored as array_record, read without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from maijax.data import cachedir
from maijax.errors import DataError

STORIES = "maijax_stories"
_PREFIX = "tfds:"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def is_tfds(uri: str) -> bool:
    return uri.startswith(_PREFIX)


def parse(uri: str) -> tuple[str, str]:
    """tfds:NAME[/config][:version][:split] -> (NAME[/config][:version], split), by default train."""
    name, _, rest = uri.removeprefix(_PREFIX).partition(":")
    if not name:
        raise DataError(f"data source {uri}: no name; write tfds:NAME[/config][:version][:split]")
    head, _, tail = rest.partition(":")
    if _VERSION.fullmatch(head):
        return f"{name}:{head}", tail or "train"
    return name, rest or "train"


def texts(
    uri: str, *, field: str, cache: Path, decode: Callable[[bytes, str], str]
) -> Iterator[tuple[str, str]]:
    """(place, text) of each record, in the order of the files; a missing dataset is prepared first."""
    import tensorflow_datasets as tfds

    name, split = parse(uri)
    builder = _builder(uri, cache)
    if field not in (builder.info.features or {}):
        there = ", ".join(map(repr, sorted(builder.info.features or {}))) or "none"
        raise DataError(f"data source {uri}: no field '{field}'; its fields: {there}; set `field`")
    # Only the text is decoded: other features may be large, or need packages that are not here.
    only = tfds.features.FeaturesDict({field: builder.info.features[field]})
    try:
        source = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError as error:
        raise DataError(f"data source {uri}: {error}; prepare it with file_format='array_record'") from None
    except ValueError as error:
        raise DataError(f"data source {uri}: {error}; its splits: {', '.join(builder.info.splits)}") from None
    for index in range(len(source)):
        where = f"{uri} record {index}"
        try:
            example: Any = only.deserialize_example_np(source[index])
        except Exception as error:
            raise DataError(f"{where} of {name} in {builder.data_path} cannot be read ({error})") from None
        text = example[field]
        if isinstance(text, bytes):
            text = decode(text, where)
        if not isinstance(text, str):
            raise DataError(f"{where}: field '{field}' is a {type(text).__name__}; it must be text")
        yield where, text


def files(uri: str, cache: Path) -> list[Path]:
    """Every file of the prepared dataset."""
    return sorted(path for path in Path(_builder(uri, cache).data_path).iterdir() if path.is_file())


def _builder(uri: str, cache: Path) -> Any:
    import tensorflow_datasets as tfds

    name, _ = parse(uri)
    if name.partition("/")[0].partition(":")[0] == STORIES:
        import maijax.data.stories  # noqa: F401  (its import registers the dataset)

        folder: str | None = str(cache / "tfds")
    else:
        folder = os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise DataError(
            f"data source {uri}: TFDS knows no dataset '{name}'; TFDS_DATA_DIR says where prepared ones lie"
        ) from None
    except Exception as error:  # a builder's own code runs here, which may want TensorFlow
        raise DataError(f"data source {uri} cannot be opened ({_first_line(error)})") from None
    if not Path(builder.data_path).exists():
        builder = _prepared(uri, name, folder, cache)
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"data source {uri} in {builder.data_path} is not stored as array_record, and needs TensorFlow; "
            f"prepare it again with file_format='array_record'"
        )
    return builder


def _prepared(uri: str, name: str, folder: str | None, cache: Path) -> Any:
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    with cachedir.locked(cache, "tfds-" + re.sub(r"\W", "-", name)):
        try:
            # TFDS announces itself on standard output, which belongs to the caller.
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"data source {uri} could not be prepared ({type(error).__name__}: {_first_line(error)}); "
                f"prepare it elsewhere with file_format='array_record' and copy it to {builder.data_path}"
            ) from None
    return builder


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
