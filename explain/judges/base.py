"""What a judge is: it labels a latent from examples, and tells from a label alone where the latent fires."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...shared.console import Console


@dataclass(frozen=True)
class Window:
    """A stretch of text.

    Attributes:
        tokens: its tokens as text.
        marks: tokens that are marked.
    """

    tokens: tuple[str, ...]
    marks: tuple[bool, ...]


@dataclass(frozen=True)
class Lesson:
    """What a judge is shown to label a latent.

    Attributes:
        active: windows in which the latent fires, the tokens on which it fires strongly marked; the strongest first.
        silent: windows in which it does not, most of them similar.
    """

    active: tuple[Window, ...]
    silent: tuple[Window, ...]


@dataclass(frozen=True)
class Label:
    """What a latent fires on, in one line. `rule` is what a judge without a language model knows beside the text."""

    text: str
    rule: Any = None


@dataclass(frozen=True)
class Question:
    """Windows to judge by a label.

    Attributes:
        marked: the windows have marks, and the question is whether these are the tokens that fit the label (fuzzing);
            otherwise, whether anything in the window does (detection).
    """

    label: Label
    windows: tuple[Window, ...]
    marked: bool


@dataclass(frozen=True)
class Estimate:
    """What labels and answers will take, at most.

    Attributes:
        requests: to a language model.
        tokens_in, tokens_out: of all requests together, about.
        cost: in the currency of the judge's prices; None: the judge has no prices.
        known: requests whose answers an earlier, interrupted command left.
    """

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = 0.0
    known: int = 0


class Judge(ABC):
    """A judge.

    Attributes:
        name: "rule", or a model's name.
        reads_text: it needs a tokenizer's text; token ids mean nothing to it.
    """

    name: str
    reads_text: bool = True

    @abstractmethod
    def label(self, lessons: Sequence[Lesson], console: Console) -> list[Label | None]:
        """A label for each lesson; None where the judge gave none."""

    @abstractmethod
    def answer(self, questions: Sequence[Question], console: Console) -> list[list[bool | None]]:
        """Of each question, yes or no for each window; None where the judge gave no answer."""

    def estimate(self, lessons: Sequence[Lesson], questions: Sequence[Question]) -> Estimate:
        """What both will take; the labels of the questions are not known yet."""
        return Estimate()

    def spent(self) -> dict[str, Any]:
        """What both took."""
        return {}
