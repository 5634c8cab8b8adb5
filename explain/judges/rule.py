"""The embedded judge: a rule on tokens and what is ahead of them, learned from the lesson. No language model.

A rule is a few alternatives, each of one or two facts: "`␣the` after `of`, or digits". It is chosen greedily for the
mean of two balanced accuracies on the lesson: of windows (any token fits) and of tokens (the marked ones fit). What it
says of a held-out window follows from the window's tokens alone, as with any other judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...shared.console import Console
from .base import Judge, Label, Lesson, Question, Window
from .configs import RuleConfig
from .facts import Fact, candidates

BEAM = 40
"""Facts of each kind that are combined in pairs."""

GAIN = 0.02
"""What a further fact or alternative must add, or it is not worth its words."""

NO_RULE = "no rule found"


@dataclass(frozen=True)
class Rule:
    """Alternatives, each a conjunction of facts."""

    alternatives: tuple[tuple[Fact, ...], ...]

    def __str__(self) -> str:
        said = []
        for facts in self.alternatives:
            own = [str(fact) for fact in facts if fact.place == "own"] or ["tokens"]
            said.append(" ".join([" that are ".join(own), *(str(fact) for fact in facts if fact.place != "own")]))
        return ", or ".join(said) or NO_RULE

    def holds(self, tokens: Sequence[str]) -> NDArray[np.bool_]:
        """Of which tokens of a window it holds [T]."""
        out = np.zeros(len(tokens), np.bool_)
        for facts in self.alternatives:
            out |= np.logical_and.reduce([fact.holds(tokens) for fact in facts])
        return out


class RuleJudge(Judge):
    """Rules.

    Args:
        config: its settings.
    """

    name = "rule"
    reads_text = False

    def __init__(self, config: RuleConfig, answers: Path | None = None, **limits: object) -> None:
        self.config = config

    def label(self, lessons: Sequence[Lesson], console: Console) -> list[Label | None]:
        found: list[Label | None] = []
        with console.progress(len(lessons), "labels", "learn rules") as progress:
            for lesson in lessons:
                rule = learned(lesson, self.config.terms)
                found.append(Label(str(rule), rule))
                progress.advance()
        return found

    def answer(self, questions: Sequence[Question], console: Console) -> list[list[bool | None]]:
        return [[_fits(one, window) for window in one.windows] for one in questions]


def _fits(question: Question, window: Window) -> bool:
    """Detection: some token fits the rule. Fuzzing: at least half of the marked ones do."""
    holds = question.label.rule.holds(window.tokens)
    return bool(holds[list(window.marks)].mean() >= 0.5) if question.marked else bool(holds.any())


class _Ledger:
    """What facts hold of the tokens of a lesson, and how good a choice of tokens is."""

    def __init__(self, lesson: Lesson) -> None:
        windows = [*lesson.active, *lesson.silent]
        self.tokens = [window.tokens for window in windows]
        self.starts = np.cumsum([0, *map(len, self.tokens)])[:-1]
        self.n_active, self.n_silent = len(lesson.active), len(lesson.silent)
        marks = np.array([mark for window in windows for mark in window.marks])
        owner = np.repeat(np.arange(len(windows)), [len(tokens) for tokens in self.tokens])
        marked = np.bincount(owner, marks, len(windows))
        self.right = np.where(marks, 1 / np.maximum(marked[owner], 1), 0).astype(np.float32) / self.n_active
        self.wrong = (~marks / max(1, int((~marks).sum()))).astype(np.float32)

    def holds(self, fact: Fact) -> NDArray[np.bool_]:
        return np.concatenate([fact.holds(tokens) for tokens in self.tokens])

    def worth(self, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Of each row of [P, tokens]: the mean balanced accuracy of windows and of tokens [P]."""
        fits = np.logical_or.reduceat(chosen, self.starts, axis=1)
        silent = fits[:, self.n_active :].mean(1) if self.n_silent else 0.5
        windows = (fits[:, : self.n_active].mean(1) + 1 - silent) / 2
        tokens = (chosen @ self.right + 1 - chosen @ self.wrong) / 2
        worth: NDArray[np.float64] = ((windows + tokens) / 2).astype(np.float64)
        return worth


def learned(lesson: Lesson, terms: int = 3) -> Rule:
    """The rule of a lesson: up to `terms` alternatives; none where no fact tells its active windows apart."""
    facts = candidates(lesson.active)
    if not facts:
        return Rule(())
    ledger = _Ledger(lesson)
    holds = np.stack([ledger.holds(fact) for fact in facts])
    single = ledger.worth(holds)
    options: list[tuple[Fact, ...]] = [(fact,) for fact in facts]
    order = np.argsort(-single, kind="stable").tolist()
    own = [i for i in order if facts[i].place == "own"][:BEAM]
    pairs = [(i, j) for i in own for j in order[: 2 * BEAM] if facts[j].place != "own" or i < j]
    if pairs:
        left, right = np.array(pairs).T
        both = holds[left] & holds[right]
        better = np.flatnonzero(ledger.worth(both) > np.maximum(single[left], single[right]) + GAIN)
        options += [(facts[pairs[p][0]], facts[pairs[p][1]]) for p in better.tolist()]
        holds = np.concatenate([holds, both[better]])
    chosen: list[tuple[Fact, ...]] = []
    covered, best = np.zeros(holds.shape[1], np.bool_), 0.5
    for _ in range(terms):
        worth = ledger.worth(holds | covered)
        top = int(np.argmax(worth))
        if worth[top] < best + GAIN:
            break
        chosen.append(options[top])
        covered, best = covered | holds[top], float(worth[top])
    return Rule(tuple(chosen))
