"""What a language model is asked, and what is read from its answer."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .base import Label, Lesson, Window

Messages = list[dict[str, str]]

LONGEST = 200
"""Characters of a label; a longer one is cut and ends in an ellipsis."""

LABEL = """You study a latent of a sparse autoencoder that was trained on a language model. You are shown excerpts of \
text. In the first list the latent is active; the tokens on which it is most active stand between << and >>. In the \
second list it is silent, although some of the excerpts look similar.
Say what the latent is active on: one line of at most 15 words, as specific as the excerpts allow. Do not mention the \
marks, and do not list several guesses. Answer with that line alone."""

DETECT = """A latent of a language model has a description. You are shown numbered excerpts of text. For each of them, \
in order, decide whether some token in it fits the description, so that the latent would be active: 1 if so, 0 if not.
Answer with one JSON list of {n} numbers, such as [0, 1], and nothing else."""

FUZZ = """A latent of a language model has a description. You are shown numbered excerpts of text in which tokens are \
marked between << and >>. For each of them, in order, decide whether the marked tokens are the ones that fit the \
description: 1 if so, 0 if they are not.
Answer with one JSON list of {n} numbers, such as [0, 1], and nothing else."""


def shown(window: Window, marked: bool) -> str:
    """A window on one line, stretches of marked tokens between << and >>."""
    parts = []
    marks = window.marks if marked else (False,) * len(window.tokens)
    for is_marked, stretch in groupby(zip(window.tokens, marks, strict=True), key=lambda pair: pair[1]):
        text = "".join(token for token, _ in stretch)
        parts.append(f"<<{text}>>" if is_marked else text)
    return "".join(parts).replace("\r", "").replace("\n", "↵")


def to_label(lesson: Lesson) -> Messages:
    """Asks for a label."""
    active = "\n".join(f"{i}. {shown(window, True)}" for i, window in enumerate(lesson.active, 1))
    silent = "\n".join(f"{i}. {shown(window, False)}" for i, window in enumerate(lesson.silent, 1))
    lists = f"Active:\n{active}" + (f"\n\nSilent:\n{silent}" if silent else "")
    return [{"role": "system", "content": LABEL}, {"role": "user", "content": lists}]


def to_judge(label: Label, windows: Sequence[Window], marked: bool) -> Messages:
    """Asks about windows."""
    listed = "\n".join(f"{i}. {shown(window, marked)}" for i, window in enumerate(windows, 1))
    task = (FUZZ if marked else DETECT).format(n=len(windows))
    return [
        {"role": "system", "content": task},
        {"role": "user", "content": f"Description: {label.text}\n\nExcerpts:\n{listed}"},
    ]


def label_in(answer: str) -> Label | None:
    """The last line of an answer that says something, without the decoration that models like; None if none does."""
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL)
    for line in reversed(answer.splitlines()):
        said = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in line)
        said = re.sub(r"^[\s*#>-]*(\[?(explanation|label|description|answer)\]?\s*:)?", "", said, flags=re.IGNORECASE)
        said = re.sub(r"\s+", " ", said).strip(" *\"'“”`")
        if any(c.isalnum() for c in said):
            return Label(said if len(said) <= LONGEST else said[: LONGEST - 1] + "…")
    return None


def verdicts_in(answer: str, n: int) -> list[bool | None]:
    """The first list of n zeros and ones in an answer; n times None where there is none."""
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL)
    for found in re.findall(r"\[[^\[\]]*\]", answer):
        try:
            values: Any = json.loads(found)
        except (ValueError, RecursionError):
            continue
        if len(values) == n and all(value in (0, 1) and not isinstance(value, (str, list)) for value in values):
            return [bool(value) for value in values]
    return [None] * n
