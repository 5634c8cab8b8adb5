"""Boolean labels of rows: from a token's text, the next token, the document or the position.

A label is 1 (yes), 0 (no) or −1 (unknown: a comma has no first letter, the last token has no successor). Rows at −1
take no part in that label's probes. Labels belong to families (`first_letter`, `suffix`, …), because the number of
labels that a rate needs is set per family.
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

    def columns(self, index: Sequence[int]) -> Labels:
        """The labels with these indices, in this order."""
        return Labels(tuple(self.names[i] for i in index), self.values[:, list(index)])

    def with_enough(self, rows: int) -> Labels:
        """The labels with at least `rows` positive and at least `rows` negative rows."""
        enough = ((self.values == 1).sum(0) >= rows) & ((self.values == 0).sum(0) >= rows)
        return self.columns(np.flatnonzero(enough).tolist())


def family_of(name: str) -> str:
    """``first_letter`` of ``first_letter:a``."""
    return name.split(":", 1)[0]


def concatenate(parts: Sequence[Labels]) -> Labels:
    """One set of labels from several of the same rows.

    Raises:
        ValueError: `parts` is empty.
    """
    if not parts:
        raise ValueError("no labels to join")
    return Labels(
        tuple(name for part in parts for name in part.names), np.concatenate([part.values for part in parts], axis=1)
    )


# Labels of a token's own text: one table over the vocabulary, indexed by the token of each row


def token_texts(cache: Cache) -> list[str]:
    """The text of each token id up to the largest in the cache [largest id + 1]; "" for special tokens.

    Raises:
        DataError: the cache has no tokenizer.
    """
    vocabulary = Vocabulary.of(cache)
    if not vocabulary.known:
        raise DataError(
            f"{cache.path} has no tokenizer, and labels need the text of its tokens", "harvest the cache again"
        )
    last = int(cache.tokens.max())
    return ["" if token in vocabulary.special else vocabulary.piece(token) for token in range(last + 1)]


def word_of(text: str) -> str | None:
    """The word of a token that is ASCII letters after at most one leading space; None for other tokens."""
    word = text[1:] if text.startswith(" ") else text
    return word if word and all(character in string.ascii_letters for character in word) else None


def is_punctuation(text: str) -> bool:
    """Whether a text, stripped of spaces, is all punctuation and symbols (Unicode categories P and S)."""
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
    # A special token has no text, so the label is unknown.
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
"""Classes of the next token."""

FAMILIES = (*TOKEN_FAMILIES, "next_token", "position")
"""Families of every cache with a tokenizer; a cache's own label columns are further ones."""


def token_table(texts: Sequence[str], family: str) -> Labels:
    """A family of :data:`TOKEN_FAMILIES` for each token id: labels [V, P].

    Args:
        texts: [V] the text of each token id.
        family: a key of TOKEN_FAMILIES.
    """
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
        families: keys of :data:`FAMILIES` and of the columns; a column overrides a family of the same name.
        columns: name → document → value: labels of the cache's documents (or prompts).

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
    # A document's last token does not predict the first token of the next one.
    has_next &= cache.doc_id[seq, after] == cache.doc_id[seq, position]
    names = tuple(f"next_token:{name}" for name in NEXT_TOKEN_CLASSES)
    table = np.array([[test(text) for test in NEXT_TOKEN_CLASSES.values()] for text in texts], np.int8)
    values = table[cache.tokens[seq, after]]
    values[~has_next] = UNKNOWN
    return Labels(names, values)


def _position_bins(position: NDArray[np.int32], ctx: int) -> Labels:
    """One label for each of ten equal bins of the positions 1 … ctx − 1 (fewer in a shorter context).

    Position 0 is unknown to all.
    """
    n_bins = min(N_POSITION_BINS, max(ctx - 1, 1))
    bin_of = np.where(position > 0, position_bins(position, ctx, n_bins) - 1, UNKNOWN)
    values = (bin_of[:, None] == np.arange(n_bins)).astype(np.int8)
    values[bin_of == UNKNOWN] = UNKNOWN
    return Labels(tuple(f"position:{index}" for index in range(n_bins)), values)


def categories(family: str, values: Sequence[object]) -> Labels:
    """One label for each distinct value of a column [n]; a column of booleans is one label.

    "" and None are unknown.

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
            f"label column {family!r} has {len(present)} distinct values, expected at most {MAX_CATEGORIES}"
        )
    distinct = sorted(present, key=str)
    index = {value: i for i, value in enumerate(distinct)}
    codes = np.array([index[value] if is_known else UNKNOWN for value, is_known in zip(values, known, strict=True)])
    table = (codes.reshape(-1, 1) == np.arange(len(distinct))).astype(np.int8)
    table[codes == UNKNOWN] = UNKNOWN
    return Labels(tuple(f"{family}:{value}" for value in distinct), table.reshape(len(values), len(distinct)))


def content_rows(cache: Cache) -> NDArray[np.int64]:
    """Rows with text: neither EOS nor padding nor position 0 (BOS tokens among them). [n], ascending."""
    usable = rest_rows(cache.flags, cache.ctx) & ((cache.flags & int(Flag.EOS)) == 0)
    return np.flatnonzero(usable.reshape(-1)).astype(np.int64)


def draw(rows: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """At most n of the rows, drawn uniformly without replacement. Ascending."""
    if len(rows) <= n:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))
