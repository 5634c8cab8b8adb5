"""Rows that cannot be used, and what one reading of a dataset found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...shared.cache.files import read_json, write_json
from ...shared.errors import UsageError
from ..config import OnBadRow

Made = TypeVar("Made")
Given = TypeVar("Given")


class BadRowError(UsageError):
    """A row, or the rest of a damaged file, that cannot be used; `on_bad_row` decides what follows.

    Args:
        where: file and line, or file and row.
        reason: the kind of fault in a few words, the same for every row that has it: skipped rows are counted by it.
        detail: the rest of the sentence about this row; the reason if empty.
        setting: the setting that the row contradicts.
        cure: what to do about it, besides skipping the row.
    """

    def __init__(
        self, where: str, reason: str, detail: str = "", *, setting: str = "harvest.dataset", cure: str = "repair it"
    ) -> None:
        super().__init__(
            f"{setting}: {where}{detail or ': ' + reason}",
            hint=f"{cure}, or leave such rows out and count them: --set harvest.on_bad_row=skip; then the same command "
            "continues",
        )
        self.where, self.reason = where, reason


def refuse_surrogates(text: str, what: str, where: str) -> None:
    """Raises BadRowError for half of a surrogate pair: it is no character, and UTF-8 cannot spell it."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise BadRowError(
            where, "lone surrogate", f": {what} holds a lone surrogate, which is no character: {half}"
        ) from None


@dataclass
class Reading:
    """What one reading of a dataset found, counted while it goes on.

    Attributes:
        on_bad_row: raise the error, or skip the row.
        skipped: reason → rows that were skipped.
        examples: reason → where the first of them is.
        spelled: special token → how often a text spells it out and it was read as plain text.
        unsure: places where a long text was cut although its tokens depend on the text far away.
        ended: what ended a mixture of datasets before the budget.
    """

    on_bad_row: OnBadRow = "error"
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    spelled: Counter[str] = field(default_factory=Counter)
    unsure: int = 0
    ended: str = ""

    def refuse(self, bad: BadRowError) -> None:
        """Raises the error, or counts the row as skipped."""
        if self.on_bad_row == "error":
            raise bad
        self.skipped[bad.reason] += 1
        self.examples.setdefault(bad.reason, bad.where)

    def each(self, items: Iterable[Given | BadRowError], make: Callable[[Given], Made]) -> Iterator[Made]:
        """``make`` of each item; bad rows among the items, and those that ``make`` raises, are refused."""
        for item in items:
            if isinstance(item, BadRowError):
                self.refuse(item)
                continue
            try:
                made = make(item)
            except BadRowError as bad:
                self.refuse(bad)
                continue
            yield made

    def notes(self) -> list[str]:
        """What was skipped and what was read as plain text, a line each; nothing if there is nothing to say."""
        notes = []
        if self.skipped:
            reasons = [f"{n:,} × {reason} (first: {self.examples[reason]})" for reason, n in self.skipped.most_common()]
            notes.append(f"skipped {self.skipped.total():,} bad rows: {'; '.join(reasons)}")
        if self.spelled:
            words = ", ".join(f"{word} {n:,} ×" for word, n in self.spelled.most_common(5))
            notes.append(
                f"{self.spelled.total():,} special tokens spelled out in the text were read as plain text ({words}); "
                "--set harvest.special_tokens=parse reads them as tokens"
            )
        if self.unsure:
            notes.append(
                f"long texts were cut at {self.unsure:,} places where the tokenizer looks further than the tokens "
                "nearby: a few tokens there may differ from those of the whole text"
            )
        return [*notes, *([self.ended] if self.ended else [])]


def keep_skipped(cache: Path, documents_file: str, reading: Reading) -> None:
    """Writes the counts of skipped rows beside the cache's file of documents; none leaves no file."""
    path = skipped_path(cache, documents_file)
    path.unlink(missing_ok=True)
    if reading.skipped:
        write_json(path, dict(reading.skipped))


def kept_skipped(cache: Path, documents_file: str) -> dict[str, Any]:
    """The manifest's entry on skipped rows; empty where none was."""
    path = skipped_path(cache, documents_file)
    return {"skipped_rows": read_json(path)} if path.is_file() else {}


def skipped_files(skipped: Sequence[tuple[Path, str]], most: int = 5) -> list[str]:
    """The files of a known kind that are not read, a line each, at most ``most``."""
    lines = [f"not read: {path} ({reason})" for path, reason in skipped[:most]]
    more = len(skipped) - most
    return [*lines, *([f"not read: {more:,} files more; --dry-run --json lists all"] if more > 0 else [])]


def skipped_path(cache: Path, documents_file: str) -> Path:
    """The file beside a cache's documents with the counts of skipped rows."""
    return cache / documents_file.replace("documents", "skipped_rows").replace(".jsonl", ".json")
