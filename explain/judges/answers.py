"""Answers of a language model on disk: a question that was answered once is not asked again."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...shared.errors import DataError
from ...shared.explain import naming

FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """A text, and the tokens that the server counted, or about as many."""

    text: str
    tokens_in: int
    tokens_out: int


def key_of(request: Any) -> str:
    """The name of a request: equal requests have equal names."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Answers:
    """The file of answers, one JSON object a line, appended as they come.

    Args:
        path: the file; created with the first answer. None: answers are not kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._known = {} if path is None else _read(path)

    def __getitem__(self, key: str) -> Answer:
        return self._known[key]

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def add(self, key: str, answer: Answer) -> None:
        """Keeps an answer. From any thread."""
        line = {"key": key, "text": answer.text, "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out}
        with self._lock:
            self._known[key] = answer
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, Answer]:
    """The answers of a file. A last line that a killed command left unfinished is cut off."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            one = json.loads(line)
            found[str(one["key"])] = Answer(str(one["text"]), int(one["tokens_in"]), int(one["tokens_out"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}:{number} is damaged: {error!r}", f"rm {path}, and the questions are asked again"
            ) from None
    return found
