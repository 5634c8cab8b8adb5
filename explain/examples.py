"""Contrastive examples of a latent: windows in which it fires, the strongest and the weaker ones, and similar windows
in which it does not. Labels are learned from the documents of one half and scored on those of the other.

After Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large Language Models" (arXiv 2410.13928):
in *detection* a judge tells windows with activations from windows without; in *fuzzing* tokens are marked, and it tells
windows whose marks are on the tokens that activate from windows with marks anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import ExplainConfig
from .firings import Firings
from .judges.base import Lesson, Window
from .text import Text

POOL = 200_000
"""Rows drawn to look for windows without activations."""

MOST = 4096
"""Windows with activations that are looked at; of more, every n-th by rank."""


@dataclass(frozen=True)
class Test:
    """Held-out windows.

    Attributes:
        plain: without marks. marked: the same windows with marks.
        truth: whether the latent fires in each.
    """

    plain: tuple[Window, ...]
    marked: tuple[Window, ...]
    truth: tuple[bool, ...]


@dataclass(frozen=True)
class Examples:
    """What a latent's label is learned from, and scored on."""

    lesson: Lesson
    test: Test


class Examiner:
    """Draws examples from a text.

    Args:
        text: the rows.
        config: how many, and how wide.
    """

    def __init__(self, text: Text, config: ExplainConfig) -> None:
        self.text, self.config = text, config
        rng = np.random.default_rng(config.seed)
        rows = np.flatnonzero(text.counts)
        self.pool: NDArray[np.int64] = rng.permutation(rows)[:POOL]
        self.bounds = self._bounds(self.pool)

    def _bounds(self, peaks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.text.bounds(peaks, before=self.config.before, after=self.config.after)

    def examples(self, firings: Firings, seed: int) -> Examples | str:
        """The examples of a latent, or why there are too few.

        Args:
            seed: of what is drawn for this latent.
        """
        config, text = self.config, self.text
        peaks = self._peaks(firings)
        halves = {half: peaks[text.learn[peaks] == half] for half in (True, False)}
        for half, name in ((True, "to learn from"), (False, "held out")):
            if len(halves[half]) < config.least:
                return f"fires in {len(halves[half])} windows {name}, at least {config.least} are needed"
        learned = self._strong_and_even(halves[True])
        silent, similar = self._silent(firings, learned)
        rng = np.random.default_rng((config.seed, seed))
        shown = [*similar[text.learn[similar]], *silent[text.learn[silent]]][: config.learn_silent]
        tested = evenly(halves[False], config.test)
        near, others = similar[~text.learn[similar]], silent[~text.learn[silent]]
        near = near[: config.test // 2]
        missed = np.concatenate([near, others[: config.test - len(near)]])
        if len(missed) < config.least:
            return f"silent in {len(missed)} held-out windows, at least {config.least} are needed"
        lesson = Lesson(
            tuple(self._window(peak, firings) for peak in learned), tuple(self._window(peak) for peak in shown)
        )
        return Examples(lesson, self._test(tested, missed, firings, rng))

    def nothing(self, n: int, seed: int) -> Lesson:
        """A lesson of no latent: windows at random rows, a token of each marked; what a judge makes of them is a label
        that knows the corpus and nothing else.
        """
        rng = np.random.default_rng((self.config.seed, 1, seed))
        rows = self.pool[self.text.learn[self.pool]]
        drawn = rng.choice(rows, min(len(rows), n + self.config.learn_silent), replace=False)
        active = tuple(self._window(peak, None, (peak,)) for peak in drawn[:n].tolist())
        return Lesson(active, tuple(self._window(peak) for peak in drawn[n:].tolist()))

    def _peaks(self, firings: Firings) -> NDArray[np.int64]:
        """The rows at which its windows peak, the strongest first: one of each stretch as long as a window, identical
        contexts once.
        """
        width = self.config.before + 1 + self.config.after
        cell = firings.rows // width
        order = np.lexsort((firings.rows, -firings.values, cell))
        _, first = np.unique(cell[order], return_index=True)
        peaks = order[first]
        ranked = firings.rows[peaks[np.lexsort((firings.rows[peaks], -firings.values[peaks]))]]
        seen: dict[bytes, int] = {}
        starts, _ = self._bounds(chosen := evenly(ranked, MOST))
        for start, peak in zip(starts.tolist(), chosen.tolist(), strict=True):
            seen.setdefault(self.text.tokens[start : peak + 1].tobytes(), peak)
        return np.array(list(seen.values()), np.int64)

    def _strong_and_even(self, peaks: NDArray[np.int64]) -> list[int]:
        """Half of them the strongest, the rest evenly by rank."""
        n = min(self.config.learn, len(peaks))
        top = n - n // 2
        return [*peaks[:top].tolist(), *evenly(peaks[top:], n - top).tolist()]

    def _silent(self, firings: Firings, learned: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Drawn rows in whose window the latent is silent: (in random order, those of them that are similar).

        Similar: the token is one on which the latent peaks, or the token ahead of it is ahead of a peak; those with
        both come first.
        """
        start, stop = self.bounds
        none = np.searchsorted(firings.rows, start) == np.searchsorted(firings.rows, stop)
        silent = self.pool[none]
        tokens, peaks = self.text.tokens, np.array(learned)
        same = np.isin(tokens[silent], tokens[peaks])
        ahead = np.isin(tokens[silent - 1], tokens[peaks - 1]) & (self.text.first[silent] < silent)
        likeness = 2 * same + ahead
        order = np.argsort(-likeness, kind="stable")
        similar = silent[order[: int((likeness > 0).sum())]]
        taken = np.isin(silent, similar[: 2 * (self.config.learn_silent + self.config.test)])
        return silent[~taken], similar

    def _window(self, peak: int, firings: Firings | None = None, marked: Sequence[int] | None = None) -> Window:
        """The window around a row, with marks on the rows `marked`, or on those where the latent fires strongly."""
        (start,), (stop,) = self._bounds(np.array([peak]))
        marks = np.zeros(stop - start, np.bool_)
        if marked is not None:
            marks[np.array(marked, np.int64) - start] = True
        elif firings is not None:
            inside = slice(*np.searchsorted(firings.rows, [start, stop]))
            values = firings.values[inside]
            marks[firings.rows[inside][values >= self.config.threshold * values.max()] - start] = True
        return Window(self.text.pieces(start, stop), tuple(marks.tolist()))

    def _test(
        self, active: NDArray[np.int64], silent: NDArray[np.int64], firings: Firings, rng: np.random.Generator
    ) -> Test:
        """Both kinds in random order. A silent window has as many marks as an active one on average, rounded up: on the
        row that it is drawn around and on random others.
        """
        strong = [self._window(peak, firings) for peak in active.tolist()]
        n = int(np.ceil(np.mean([sum(window.marks) for window in strong])))
        found = [(self._window(peak), window, True)
                 for peak, window in zip(active.tolist(), strong, strict=True)]  # fmt: skip
        for peak in silent.tolist():
            (start,), (stop,) = self._bounds(np.array([peak]))
            others = np.setdiff1d(np.arange(start, stop), [peak])
            more = rng.choice(others, min(n - 1, len(others)), replace=False).tolist()
            found.append((self._window(peak), self._window(peak, None, (peak, *more)), False))
        plain, marked, truth = zip(*(found[i] for i in rng.permutation(len(found))), strict=True)
        return Test(plain, marked, truth)


def evenly(ranked: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """n of them, evenly by rank: as many from each quantile; all where there are not more."""
    if len(ranked) <= n:
        return ranked
    return ranked[((np.arange(n) + 0.5) * len(ranked) / n).astype(np.int64)]
