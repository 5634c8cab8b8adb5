"""A judge that is a language model: prompts out, answers in, each asked once."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...shared.console import Console
from .answers import Answer, Answers, key_of
from .base import Estimate, Judge, Label, Lesson, Question, Window
from .configs import ChatConfig
from .prompts import Messages, label_in, to_judge, to_label, verdicts_in

CHARACTERS = 3.5
"""Characters of a token, about: of English and code in the tokenizers of large models, on the careful side."""

EXPECTED = Label("x" * 80)
"""In place of a label that is not known yet."""


@dataclass(frozen=True)
class Prompt:
    """One request: messages, and the most tokens of the answer."""

    messages: Messages
    limit: int

    @property
    def tokens(self) -> int:
        """Tokens to read, about."""
        return round(sum(len(one["content"]) for one in self.messages) / CHARACTERS) + 10


Keep = Callable[[int, Answer], None]


class ChatJudge(Judge):
    """A language model.

    Args:
        config: its settings.
        answers: the file of answers; None: answers are not kept.

    Attributes:
        asked, tokens_in, tokens_out: requests sent, and tokens read and written; `lock` guards them.
    """

    def __init__(self, config: ChatConfig, answers: Path | None = None) -> None:
        self.config = config
        self.name = config.model
        self.answers = Answers(answers)
        self.asked, self.tokens_in, self.tokens_out = 0, 0, 0
        self.lock = threading.Lock()

    @abstractmethod
    def complete(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        """Answers every prompt.

        Args:
            keep: called with the number of a prompt and its answer as soon as there is one, from any thread.
        """

    @abstractmethod
    def settings_of(self, prompt: Prompt) -> dict[str, Any]:
        """All that an answer depends on."""

    def label(self, lessons: Sequence[Lesson], console: Console) -> list[Label | None]:
        prompts = [Prompt(to_label(lesson), self.config.label_tokens) for lesson in lessons]
        return [label_in(text) for text in self._texts(prompts, console, "label")]

    def answer(self, questions: Sequence[Question], console: Console) -> list[list[bool | None]]:
        batches = [(place, some) for place, one in enumerate(questions) for some in self._batches(one)]
        prompts = [self._asking(questions[place], some) for place, some in batches]
        found: list[list[bool | None]] = [[] for _ in questions]
        for (place, some), text in zip(batches, self._texts(prompts, console, "judge"), strict=True):
            found[place] += verdicts_in(text, len(some))
        return found

    def estimate(self, lessons: Sequence[Lesson], questions: Sequence[Question]) -> Estimate:
        labels = [Prompt(to_label(lesson), self.config.label_tokens) for lesson in lessons]
        known = [key_of(self.settings_of(prompt)) in self.answers for prompt in labels]
        asked = [prompt for prompt, is_known in zip(labels, known, strict=True) if not is_known]
        asked += [self._asking(Question(EXPECTED, one.windows, one.marked), some)
                  for one in questions for some in self._batches(one)]  # fmt: skip
        read, written = sum(prompt.tokens for prompt in asked), sum(prompt.limit for prompt in asked)
        return Estimate(len(asked), read, written, self.cost(read, written), sum(known))

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """What so many tokens cost; None: not known."""
        return 0.0

    def spent(self) -> dict[str, Any]:
        """Requests, tokens and cost of this command; answers that were on disk are not counted."""
        cost = self.cost(self.tokens_in, self.tokens_out)
        return {
            "requests": self.asked,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost": None if cost is None else round(cost, 6),
        }

    def _batches(self, question: Question) -> Iterator[tuple[Window, ...]]:
        for start in range(0, len(question.windows), self.config.batch):
            yield question.windows[start : start + self.config.batch]

    def _asking(self, question: Question, windows: Sequence[Window]) -> Prompt:
        return Prompt(to_judge(question.label, windows, question.marked), 16 + 4 * len(windows))

    def _texts(self, prompts: Sequence[Prompt], console: Console, what: str) -> list[str]:
        """The answers to all prompts; equal ones are asked once, those on disk not at all."""
        keys = [key_of(self.settings_of(prompt)) for prompt in prompts]
        wanted = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self.answers}
        places = list(wanted)
        with console.progress(len(wanted), "requests", f"{what} ({self.name})") as progress:

            def keep(number: int, answer: Answer) -> None:
                self.answers.add(places[number], answer)
                with self.lock:
                    self.tokens_in += answer.tokens_in
                    self.tokens_out += answer.tokens_out
                progress.advance()

            if wanted:
                self.complete(list(wanted.values()), keep)
        return [self.answers[key].text for key in keys]
