"""Boolean labels of rows: what a token's text, its successor, its document or its place in the sequence says.

A label is 1 (yes), 0 (no) or −1 (the question does not arise: a comma has no first letter, the last token no
successor). Rows at −1 take no part in that label's probes. Labels come in families (`first_letter`, `suffix`, …),
because what "enough labels" means is decided per family.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...shared.cache import Cache, Flag, positions
from ...shared.cache.rows import rest_rows
from ...shared.cache.vocabulary import Vocabulary
from ...shared.codes.positions import position_bins
from ...shared.config.registry import did_you_mean
from ...shared.errors import DataError, UsageError

UNKNOWN = -1
SUFFIXES = ("s", "ed", "ing", "er", "ly", "tion", "al", "able")
N_POSITION_BINS = 10
MAX_CATEGORIES = 64
"""More distinct values than this in a label column are an identifier, not a category."""

Values = NDArray[np.int8]


@dataclass(frozen=True)
class Labels:
    """Labels of n rows.

    Attributes:
        names: P names, ``family:label`` (``family`` alone where the family has one label).
        values: [n, P] int8: 1, 0 or −1 for unknown.
    """

    names: tuple[str, ...]
    values: Values

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(f"{len(self.names)} names need as many columns, found shape {self.values.shape}")

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(family_of(name) for name in self.names))

    def family(self, name: str) -> Labels:
        """The labels of one family."""
        return self.columns([i for i, label in enumerate(self.names) if family_of(label) == name])

    def columns(self, index: Sequence[int]) -> Labels:
        return Labels(tuple(self.names[i] for i in index), self.values[:, list(index)])

    def take(self, rows: NDArray[np.int64]) -> Labels:
        return Labels(self.names, self.values[rows])

    def with_enough(self, positives: int, negatives: int | None = None) -> Labels:
        """The labels that have at least so many positive and negative rows."""
        negatives = positives if negatives is None else negatives
        enough = ((self.values == 1).sum(0) >= positives) & ((self.values == 0).sum(0) >= negatives)
        return self.columns(np.flatnonzero(enough).tolist())


def family_of(name: str) -> str:
    """``first_letter`` of ``first_letter:a``."""
    return name.split(":", 1)[0]


def concatenate(parts: Sequence[Labels]) -> Labels:
    """The columns of several label sets of the same rows."""
    if not parts:
        raise ValueError("no labels to join")
    return Labels(
        tuple(name for part in parts for name in part.names), np.concatenate([part.values for part in parts], axis=1)
    )


# Labels of a token's own text: one table over the vocabulary, looked up per row


def token_texts(cache: Cache, vocabulary: Vocabulary | None = None) -> list[str]:
    """The text of every token id that the cache holds: [largest id + 1]; special tokens have the empty text.

    Raises:
        DataError: the cache carries no tokenizer.
    """
    vocabulary = vocabulary or Vocabulary.of(cache)
    if not vocabulary.known:
        raise DataError(
            f"{cache.path} carries no tokenizer, and labels need the text of its tokens", "harvest the cache again"
        )
    last = int(cache.tokens.max())
    return ["" if token in vocabulary.special else vocabulary.piece(token) for token in range(last + 1)]


def word_of(text: str) -> str | None:
    """The word a token is: ASCII letters after at most one leading space; None for anything else."""
    word = text[1:] if text.startswith(" ") else text
    return word if word and all(character in string.ascii_letters for character in word) else None


def is_punctuation(text: str) -> bool:
    """Nothing but punctuation and symbols (Unicode categories P and S), spaces around it aside."""
    body = text.strip()
    return bool(body) and all(unicodedata.category(character)[0] in "PS" for character in body)


def _over_words(texts: Sequence[str], classes: Sequence[str], test: Callable[[str, str], bool]) -> Values:
    table = np.full((len(texts), len(classes)), UNKNOWN, np.int8)
    for i, text in enumerate(texts):
        word = word_of(text)
        if word is not None:
            table[i] = [test(word, label) for label in classes]
    return table


def _over_all(texts: Sequence[str], test: Callable[[str], bool]) -> Values:
    # A special token has no text, and so no answer.
    return np.array([test(text) if text else UNKNOWN for text in texts], np.int8).reshape(-1, 1)


def _first_letter(texts: Sequence[str]) -> tuple[list[str], Values]:
    letters = list(string.ascii_lowercase)
    return letters, _over_words(texts, letters, lambda word, letter: word[0].lower() == letter)


def _suffix(texts: Sequence[str]) -> tuple[list[str], Values]:
    # A word needs two letters before the ending: "ring" does not end in the suffix "ing".
    return list(SUFFIXES), _over_words(
        texts, SUFFIXES, lambda word, ending: len(word) > len(ending) + 1 and word.lower().endswith(ending)
    )


def _capitalised(texts: Sequence[str]) -> tuple[list[str], Values]:
    return [""], _over_all(texts, lambda text: text.lstrip()[:1].isupper())


def _digit(texts: Sequence[str]) -> tuple[list[str], Values]:
    return [""], _over_all(texts, lambda text: any(character.isdigit() for character in text))


def _punctuation(texts: Sequence[str]) -> tuple[list[str], Values]:
    return [""], _over_all(texts, is_punctuation)


def _leading_space(texts: Sequence[str]) -> tuple[list[str], Values]:
    return [""], _over_all(texts, lambda text: text.startswith(" ") and bool(text.strip()))


TOKEN_FAMILIES: dict[str, Callable[[Sequence[str]], tuple[list[str], Values]]] = {
    "first_letter": _first_letter,
    "capitalised": _capitalised,
    "digit": _digit,
    "punctuation": _punctuation,
    "leading_space": _leading_space,
    "suffix": _suffix,
}
"""Families of a token's own text: texts [V] → (labels, table [V, labels])."""

NEXT_TOKEN_CLASSES: dict[str, Callable[[str], bool]] = {
    "word_start": lambda text: text.startswith(" ") and word_of(text) is not None,
    "word_part": lambda text: not text.startswith(" ") and word_of(text) is not None,
    "capitalised": lambda text: text.lstrip()[:1].isupper(),
    "digit": lambda text: any(character.isdigit() for character in text),
    "punctuation": is_punctuation,
    "whitespace": lambda text: bool(text) and not text.strip(),
}
"""Classes of the token that follows."""

FAMILIES = (*TOKEN_FAMILIES, "next_token", "position")
"""Families that any cache with a tokenizer has; a cache's own columns come on top."""


def token_table(texts: Sequence[str], family: str) -> Labels:
    """A family of :data:`TOKEN_FAMILIES` for every token id: Labels over the vocabulary."""
    labels, table = TOKEN_FAMILIES[family](texts)
    return Labels(tuple(f"{family}:{label}" if label else family for label in labels), table)


def row_labels(
    cache: Cache,
    rows: NDArray[np.int64],
    texts: Sequence[str],
    families: Sequence[str],
    columns: Mapping[str, Mapping[int, object]] | None = None,
) -> Labels:
    """Labels of some rows of a cache.

    Args:
        rows: [n] row numbers, sequence · ctx + position.
        texts: [V] the text of each token id (token_texts).
        families: which of :data:`FAMILIES` and of the columns; a column goes before a family of the same name.
        columns: name → document → value: what the cache knows of its documents (or prompts).

    Raises:
        UsageError: an unknown family.
    """
    columns = columns or {}
    known = [*columns, *(family for family in FAMILIES if family not in columns)]
    unknown = [family for family in families if family not in known]
    if unknown:
        raise UsageError(
            f"{cache.path} has no labels {unknown[0]!r}{did_you_mean(unknown[0], known)}", f"one of: {', '.join(known)}"
        )
    seq, position = np.divmod(rows, cache.ctx)
    tokens = cache.tokens[seq, position]
    parts = []
    for family in families:
        if family in columns:
            column = columns[family]
            parts.append(categories(family, [column.get(int(doc)) for doc in cache.doc_id[seq, position]]))
        elif family in TOKEN_FAMILIES:
            table = token_table(texts, family)
            parts.append(Labels(table.names, table.values[tokens]))
        elif family == "next_token":
            parts.append(_next_token(cache, seq, position, texts))
        else:
            parts.append(_position_bins(positions(rows, cache.flags[seq, position], cache.ctx), cache.ctx))
    return concatenate(parts)


def _next_token(cache: Cache, seq: NDArray[np.int64], position: NDArray[np.int64], texts: Sequence[str]) -> Labels:
    has_next = position + 1 < cache.ctx
    after = np.minimum(position + 1, cache.ctx - 1)
    has_next &= (cache.flags[seq, after] & int(Flag.PADDING | Flag.BOS)) == 0
    # Across the border of two documents there is nothing to predict.
    has_next &= cache.doc_id[seq, after] == cache.doc_id[seq, position]
    names = tuple(f"next_token:{name}" for name in NEXT_TOKEN_CLASSES)
    table = np.array([[test(text) for test in NEXT_TOKEN_CLASSES.values()] for text in texts], np.int8)
    values = table[cache.tokens[seq, after]]
    values[~has_next] = UNKNOWN
    return Labels(names, values)


def _position_bins(position: NDArray[np.int32], ctx: int) -> Labels:
    """Position 0 is no bin's; 1 … ctx − 1 fall into ten equal bins (fewer in a shorter context)."""
    n_bins = min(N_POSITION_BINS, max(ctx - 1, 1))
    bin_of = np.where(position > 0, position_bins(position, ctx, n_bins) - 1, UNKNOWN)
    values = (bin_of[:, None] == np.arange(n_bins)).astype(np.int8)
    values[bin_of == UNKNOWN] = UNKNOWN
    return Labels(tuple(f"position:{index}" for index in range(n_bins)), values)


def categories(family: str, values: Sequence[object]) -> Labels:
    """One label for each distinct value of a column; a column of booleans is one label.

    An empty text or None is unknown.

    Raises:
        UsageError: more than MAX_CATEGORIES distinct values.
    """
    known = [value is not None and value != "" for value in values]
    present = {value for value, is_known in zip(values, known, strict=True) if is_known}
    if present and all(isinstance(value, bool) for value in present):
        one = [int(bool(value)) if is_known else UNKNOWN for value, is_known in zip(values, known, strict=True)]
        return Labels((family,), np.array(one, np.int8).reshape(-1, 1))
    if len(present) > MAX_CATEGORIES:
        raise UsageError(
            f"label column {family!r} has {len(present)} distinct values, and at most {MAX_CATEGORIES} make categories"
        )
    distinct = sorted(present, key=str)
    index = {value: i for i, value in enumerate(distinct)}
    codes = np.array([index[value] if is_known else UNKNOWN for value, is_known in zip(values, known, strict=True)])
    table = (codes.reshape(-1, 1) == np.arange(len(distinct))).astype(np.int8)
    table[codes == UNKNOWN] = UNKNOWN
    return Labels(tuple(f"{family}:{value}" for value in distinct), table.reshape(len(values), len(distinct)))


def content_rows(cache: Cache) -> NDArray[np.int64]:
    """Rows that hold text: neither EOS nor padding, nor position 0, which every BOS is at. Ascending."""
    usable = rest_rows(cache.flags, cache.ctx) & ((cache.flags & int(Flag.EOS)) == 0)
    return np.flatnonzero(usable.reshape(-1)).astype(np.int64)


def draw(rows: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """At most n of the rows, drawn evenly without replacement. Ascending."""
    if len(rows) <= n:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))
