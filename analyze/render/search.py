"""What the page looks up besides the panels: tokens to search by, whole sequences around examples, matching latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...shared.cache import Cache
from ..compare.similarity import Matching

Matches = Mapping[str, Sequence[tuple[str, Matching, bool]]]
"""Run → (other run, their matching, whether this run is the matching's second)."""

WIDER = 2_000_000
"""Tokens of whole sequences in the page, for wider contexts: those of the strongest examples, as far as they go."""

TEXT_BLOCK = 32
"""Sequences in one block."""


class SearchIndex:
    """The tokens by which a latent is found, besides those it fires on: where it peaks, and what it promotes.

    Taken block by block, so that what waits is bounded.

    Attributes:
        blocks: how many were taken.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self._peaks: list[list[int]] = []
        self._promotes: list[list[str]] = []

    def __len__(self) -> int:
        return len(self._peaks)

    def add(self, panel: Sequence[Mapping[str, Any]]) -> None:
        """The next latent, by the blocks of its panel."""
        peaks: dict[int, None] = {}
        promotes: list[str] = []
        for block in panel:
            if block["type"] == "examples":
                items = [item for group in block["groups"][:1] for item in group["items"]]
                peaks |= dict.fromkeys(item[5][item[4]] for item in items)
            if block["type"] == "table" and block["columns"][0][0] == "promotes":
                promotes = [row[0] for row in block["rows"]]
        self._peaks.append(list(peaks))
        self._promotes.append(promotes)

    def taken(self, size: int, everything: bool = False) -> Iterator[dict[str, Any]]:
        """The next blocks of `size` latents that are whole; with `everything` what remains too.

        Each is {"n_peaks": per latent, "peaks": ids of tokens, latent after latent, "n_promotes", "promotes": places in
        "texts"}: flat lists, which a browser holds in little memory.
        """
        while len(self) >= size or (everything and len(self)):
            peaks, promotes = self._peaks[:size], self._promotes[:size]
            del self._peaks[:size], self._promotes[:size]
            texts = {text: place for place, text in enumerate(dict.fromkeys(text for row in promotes for text in row))}
            self.blocks += 1
            yield {
                "n_peaks": [len(row) for row in peaks],
                "peaks": [token for row in peaks for token in row],
                "n_promotes": [len(row) for row in promotes],
                "promotes": [texts[text] for row in promotes for text in row],
                "texts": list(texts),
            }


class Sequences:
    """The sequences that the examples of all runs come from, for those who want to read on."""

    def __init__(self) -> None:
        self.rank: dict[str, dict[int, int]] = {}  # cache → sequence → the best rank of an example in it
        self.caches: dict[str, Cache] = {}

    def add(self, cache: Cache, panel: Sequence[Mapping[str, Any]]) -> None:
        """The sequences of one latent's strongest examples."""
        key = cache.record["path"]  # as in the facts of a run, which the page looks up: of a bucket its address
        self.caches[key] = cache
        ranks = self.rank.setdefault(key, {})
        for block in panel:
            if block["type"] == "examples":
                for rank, item in enumerate(item for group in block["groups"][:1] for item in group["items"]):
                    ranks[item[1]] = min(rank, ranks.get(item[1], rank))

    def blocks(self) -> Iterator[tuple[str, Any, set[int]]]:
        """(id, plain data, tokens in it): of each cache its sequences in blocks, then the index of them."""
        index: dict[str, Any] = {}
        left = WIDER
        for number, (key, ranks) in enumerate(self.rank.items()):
            cache = self.caches[key]
            some = sorted(ranks, key=lambda sequence: (ranks[sequence], sequence))[: max(0, left // cache.ctx)]
            chosen = sorted(some)
            left -= len(chosen) * cache.ctx
            index[key] = {"number": number, "sequences": chosen}
            for start in range(0, len(chosen), TEXT_BLOCK):
                rows = [cache.tokens[sequence].tolist() for sequence in chosen[start : start + TEXT_BLOCK]]
                yield f"text-{number}-{start // TEXT_BLOCK}", rows, {token for row in rows for token in row}
        yield "text", index, set()


class Partners:
    """The latents of other runs that are the partners of this run's.

    Attributes:
        runs: of each other run its place among all runs, and this run's latent → (its partner, cosine).
    """

    def __init__(self, runs: Sequence[tuple[int, Mapping[int, tuple[int, float]]]]) -> None:
        self.runs = runs

    def of(self, latent: int) -> list[list[Any]]:
        """[place of the other run, its latent, cosine of the decoder rows] of each partner of a latent."""
        return [[run, *partners[latent]] for run, partners in self.runs if latent in partners]


def matched(name: str, matches: Matches, runs: Sequence[str]) -> Partners:
    """The partners of one run's latents in each run that it was matched with."""
    out = []
    for other, matching, reverse in matches.get(name, ()):
        if other not in runs:
            continue
        partners: dict[int, tuple[int, float]] = {}
        for i, (j, cosine) in enumerate(zip(matching.partner.tolist(), matching.cosine.tolist(), strict=True)):
            if j >= 0:
                partners[j if reverse else i] = (i if reverse else j, round(cosine, 3))
        out.append((runs.index(other), partners))
    return Partners(out)
