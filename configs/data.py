"""Corpora. `maijax show NAME` prints an experiment's; `--set data.sources=PATH` brings your own."""

from maijax.config import DataConfig, SourceConfig

# Andersen's tales and Carroll's Alice, about 2 MB of public-domain text, fetched and pinned at preparation.
# Unigram pieces: 0.4% fewer bits per byte than bpe in the same training time (LOG.md).
STORIES = DataConfig(sources=(SourceConfig(uri="tfds:maijax_stories"),), tokenizer_kind="unigram")

# Your corpus: none that we could bundle is long enough for the large sizes. Put .jsonl or .txt files (also
# compressed) and a sentencepiece model of the model's vocabulary there, or name other places with --set.
CORPUS = DataConfig(
    sources=(SourceConfig(uri="corpus/train"),), tokenizer="corpus/tokenizer.model", held_out=0.001, workers=8
)
