"""Contexts as text: the window around a peak, and the words and tokens that many latents share."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....shared.cache.vocabulary import Vocabulary
from ....shared.hashing import mix
from ...subject.subject import Subject
from .collected import Collected
from .config import TopActivationsConfig

WORD_LATENTS = 2000
"""Latents whose top contexts are searched for common words; more than that are sampled."""

WORD_CONTEXTS = 10
"""Top contexts of a latent that are searched."""

WORD = re.compile(r"[^\W\d_]+|[^\w\s]+")
"""Letters, or marks such as `=` and `{`, however few."""


@dataclass(frozen=True)
class Contexts:
    """The windows of a cache.

    Attributes:
        tokens: [n_rows] of the cache, whose sequences have ctx tokens.
        before, after: tokens shown on either side of a peak.
    """

    tokens: NDArray[np.integer]
    ctx: int
    vocabulary: Vocabulary
    before: int
    after: int

    @classmethod
    def of(cls, subject: Subject, config: TopActivationsConfig) -> Contexts:
        cache = subject.cache
        return cls(cache.tokens.reshape(-1), cache.ctx, subject.vocabulary, before=config.before, after=config.after)

    def window(self, row: int) -> range:
        """Rows of the context of a peak, inside its sequence."""
        begin = row - row % self.ctx
        return range(max(begin, row - self.before), min(begin + self.ctx, row + self.after + 1))

    def text(self, row: int) -> str:
        """The context with the peak token marked «so»."""
        window = self.window(row)
        return self.vocabulary.marked(self.tokens[window.start : window.stop].tolist(), row - window.start)

    def words(self, rows: list[int]) -> set[str]:
        """The words in the contexts of these peaks, lower case."""
        windows = (self.window(row) for row in rows)
        special = self.vocabulary.special
        tokens = (self.tokens[window.start : window.stop].tolist() for window in windows)
        texts = (self.vocabulary.text(token for token in some if token not in special) for some in tokens)
        return set(WORD.findall(" \n ".join(texts).lower()))


def common_words(contexts: Contexts, collected: Collected, subject: Subject, limit: int = 40) -> list[dict[str, Any]]:
    """Words by the number of latents in whose top contexts they occur beyond the number expected from as many random
    windows of the corpus; none without a tokenizer.
    """
    if not contexts.vocabulary.known:
        return []
    alive = np.flatnonzero(collected.fired > 0)
    chosen = alive if len(alive) <= WORD_LATENTS else alive[np.argsort(mix(alive.astype(np.uint64)))[:WORD_LATENTS]]
    rng = np.random.default_rng(subject.seed)
    seen = np.flatnonzero(subject.rest_rows)
    observed: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    for i in chosen.tolist():
        rows = [int(r) for r in collected.top.row[i, :WORD_CONTEXTS] if r >= 0]
        observed.update(contexts.words(rows))
        expected.update(contexts.words(rng.choice(seen, len(rows)).tolist() if len(seen) else []))
    # By what is beyond chance, or the words that are everywhere fill the table; words of one rank by the alphabet:
    # the order of a set of text differs from process to process.
    ranked = sorted(observed.items(), key=lambda item: (expected[item[0]] - item[1], item[0]))[:limit]
    return [{"word": word, "latents": n, "expected": expected[word], "of": len(chosen)} for word, n in ranked]


def common_peaks(favourites: NDArray[np.int64], subject: Subject, limit: int = 40) -> list[dict[str, Any]]:
    """Tokens by the number of latents whose favourite they are, beside their share of the corpus.

    Args:
        favourites: [F, m] most common tokens of each latent, −1 where there are fewer.
    """
    first = favourites[:, 0]
    first = first[first >= 0]
    if not len(first):
        return []
    tokens = subject.cache.tokens.reshape(-1)[subject.rest_rows]
    corpus = np.bincount(tokens, minlength=int(first.max()) + 1) / max(1, len(tokens))
    ids, counts = np.unique(first, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    label = subject.vocabulary.label
    return [
        {"token": label(int(ids[o])), "latents": int(counts[o]), "share_of_corpus": float(corpus[ids[o]])}
        for o in order
    ]
