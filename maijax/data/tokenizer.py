"""Text to token ids and back by sentencepiece, without loss: decode(encode(text)) == text for any text."""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from maijax.errors import UserError

Kind = Literal["bpe", "unigram"]
PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3  # ids in every tokenizer that is trained here
RECIPE = 1  # goes up when the settings below change
# Characters of a sentence. Longer lines are cut: the trainer's work grows faster than their length.
_SENTENCE = 2000
_MARK = "\u2581"  # sentencepiece's own sign for a space
_WORD = re.compile("(?<=[^ ]) ")
_MARK_PIECES = ("<0xE2>", "<0x96>", "<0x81>")


class Tokenizer:
    """A sentencepiece model. Ids: numpy int32."""

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore
        except RuntimeError:
            raise UserError(
                f"{name} is not a sentencepiece model; give the .model file of its trainer"
            ) from None
        self.vocab_size: int = self._processor.vocab_size()
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.bos, self.eos = self._processor.bos_id(), self._processor.eos_id()
        self.pad = max(self._processor.pad_id(), 0)  # masked wherever it stands, so that any id will do
        for what, token in (("bos", self.bos), ("eos", self.eos)):
            if token < 0:
                raise UserError(f"{name} has no {what} token; train it with {what}_id set")
        mark = [self._processor.piece_to_id(piece) for piece in _MARK_PIECES]
        self._mark = mark if all(self._processor.is_byte(token) for token in mark) else None
        self._divisible = self._can_divide()

    def __reduce__(self):
        return Tokenizer, (self.model,)

    def _can_divide(self) -> bool:
        """Can a text be encoded in parts, cut after newlines and before words, with the same result?

        Encoding takes time that grows faster than the length.
        """
        pieces = [self._processor.id_to_piece(token) for token in range(self.vocab_size)]
        newlines = [piece for piece in pieces if "\n" in piece]
        inside = any(re.search(f"[^{_MARK}]{_MARK}", piece) for piece in pieces)
        parts = ["a  b \n\n\n", " a\n", "a", " b", "  a"]
        together, apart = self._processor.encode("".join(parts)), self._processor.encode(parts)
        return (
            "\n" in newlines
            and not any(p.strip("\n") for p in newlines)
            and not inside
            and together == sum(apart, [])
        )

    def _divided(self, text: str) -> list[str]:
        if not self._divisible:
            return [text]
        found = []
        for line in re.findall(r"[^\n]*\n+|[^\n]+", text):
            start = 0
            while len(line) - start > _SENTENCE and (word := _WORD.search(line, start + _SENTENCE // 2)):
                found.append(line[start : word.start()])
                start = word.start()
            found.append(line[start:])
        return found

    def encode(self, text: str) -> np.ndarray:
        """The text's tokens, without BOS and EOS."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, on all cores."""
        # The sign itself would come back as a space: it is spelled in bytes, the text around it apart.
        parts = [text.split(_MARK) if self._mark else [text] for text in texts]
        lines = [self._divided(part) for of_text in parts for part in of_text]
        encoded = iter(
            self._processor.encode([line for of_part in lines for line in of_part], num_threads=-1)
        )
        of_parts = iter(lines)
        found = []
        for of_text in parts:
            ids: list[int] = []
            for index in range(len(of_text)):
                if index:
                    ids += self._mark or []
                for _ in next(of_parts):
                    ids += next(encoded)
            found.append(np.array(ids, np.int32))
        return found

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of the tokens; BOS, EOS and padding have none."""
        # A model may have room for more tokens than the tokenizer; those have no text.
        return self._processor.decode([int(token) for token in tokens if token < self.vocab_size])

    @functools.cached_property
    def piece_bytes(self) -> np.ndarray:
        """[vocab_size] int32: UTF-8 bytes of text that each token stands for; 0 for BOS, EOS and padding."""
        processor = self._processor
        lengths = np.zeros(self.vocab_size, np.int32)
        for token in range(self.vocab_size):
            if processor.is_byte(token):
                lengths[token] = 1
            elif not any(
                has(token) for has in (processor.is_control, processor.is_unknown, processor.is_unused)
            ):
                lengths[token] = len(processor.id_to_piece(token).replace(_MARK, " ").encode())
        return lengths

    def check(self, vocab_size: int, name: str) -> Tokenizer:
        """Returns itself; raises UserError if it has more tokens than the model."""
        if self.vocab_size > vocab_size:
            raise UserError(
                f"tokenizer {name} has {self.vocab_size} tokens, more than model.vocab_size={vocab_size}; "
                f"set model.vocab_size={self.vocab_size}, or take another tokenizer"
            )
        return self


def load(path: Path) -> Tokenizer:
    """A sentencepiece model from a file; raises UserError if it is not one."""
    try:
        model = path.expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer {path} cannot be read ({error.strerror}); name a .model file") from None
    if not model:
        raise UserError(f"tokenizer {path} is empty; data.tokenizer names a .model file")
    return Tokenizer(model, name=f"tokenizer {path}")


def train(texts: Iterable[str], *, vocab_size: int, kind: Kind) -> Tokenizer:
    """A tokenizer of exactly vocab_size tokens for such texts; the same texts give the same bytes.

    Raises: UserError if the texts are too few, or too varied, for the vocabulary.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=written,
            vocab_size=vocab_size,
            model_type=kind,
            # Nothing is lost: no normalisation, every space kept, bytes for characters that have no piece.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            character_coverage=0.9999,
            split_digits=True,
            user_defined_symbols=["\n\n", "\n"],
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNKNOWN,
            max_sentence_length=8 * _SENTENCE,
            num_threads=1,  # the result depends on the number
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_why(str(error), vocab_size)) from None
    return Tokenizer(written.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines(keepends=True):
            for start in range(0, len(line), _SENTENCE):
                yield line[start : start + _SENTENCE]


def _why(message: str, vocab_size: int) -> str:
    if found := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        return (
            f"the training text is too small for model.vocab_size={vocab_size}; "
            f"set model.vocab_size={found[1]} or less, or give more text"
        )
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return (
            f"model.vocab_size={vocab_size} is too small for the characters of the training text; "
            f"set model.vocab_size={found[1]} or more"
        )
    if "sentences_.empty()" in message:
        return "the training text is empty: there is nothing to train a tokenizer on; give more text"
    return f"no tokenizer of model.vocab_size={vocab_size} could be trained ({message[-200:]})"
