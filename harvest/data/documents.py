"""A document, and the columns of a table that it is read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...shared.cache.documents import Label
from ...shared.config.registry import did_you_mean
from ...shared.errors import UsageError

_TARGET, _TARGET_CHAR, _LABELS = "target", "target_char", "labels"


@dataclass(frozen=True)
class Document:
    """One text of a dataset.

    Attributes:
        source: where it came from (a file and line, a help topic, a row of a hub dataset).
        domain: a coarse label of its kind, empty where the dataset has none.
        labels: name → value.
        target: index of a prompt's target token, excluding special tokens; negative counts from the end.
        target_char: a character of the text instead: the target is the token that holds it.
    """

    text: str
    source: str
    domain: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    target: int | None = None
    target_char: int | None = None


@dataclass(frozen=True)
class Columns:
    """The columns (or JSON keys) that documents are read from.

    Attributes:
        text, domain, labels: names of required columns.
        prompts: also read ``target``, ``target_char`` and a mapping ``labels`` from rows that have them.
    """

    text: str
    domain: str | None = None
    labels: tuple[str, ...] = ()
    prompts: bool = False

    def required(self) -> list[str]:
        """Names of the columns that every row needs."""
        return [self.text, *([self.domain] if self.domain else []), *self.labels]

    def select(self, present: Sequence[str], where: object) -> list[str]:
        """The present columns to read. Raises UsageError with the setting if a required one was not found."""
        for setting, names in (
            ("text_column", [self.text]),
            ("domain_column", [self.domain]),
            ("label_columns", self.labels),
        ):
            for name in names:
                if name is not None and name not in present:
                    raise UsageError(
                        f"harvest.{setting}: {where} has no column {name!r}{did_you_mean(name, present)}",
                        hint=f"its columns: {', '.join(present)}",
                    )
        optional = (_TARGET, _TARGET_CHAR, _LABELS) if self.prompts else ()
        return list(dict.fromkeys([*self.required(), *(name for name in optional if name in present)]))

    def document(self, row: Mapping[str, Any], where: str) -> Document:
        """The document of one row. Raises UsageError if a value has the wrong type."""
        self.select(list(row), where)
        text = row[self.text]
        if not isinstance(text, str):
            raise UsageError(f"harvest.text_column: {where}: {self.text!r} is {type(text).__name__}, expected text")
        domain = row[self.domain] if self.domain else None
        labels = {name: _label(name, row[name], where) for name in self.labels}
        if not self.prompts:
            return Document(text, where, "" if domain is None else str(domain), labels)
        own = row.get(_LABELS) or {}
        if not isinstance(own, Mapping):
            raise UsageError(f"harvest.dataset: {where}: 'labels' is {type(own).__name__}, expected name → value")
        labels |= {str(name): _label(str(name), value, where) for name, value in own.items()}
        target, target_char = _index(row, _TARGET, where), _index(row, _TARGET_CHAR, where)
        if target is not None and target_char is not None:
            raise UsageError(f"harvest.dataset: {where} has both 'target' and 'target_char'; expected at most one")
        if target_char is not None and not 0 <= target_char < len(text):
            raise UsageError(
                f"harvest.dataset: {where}: target_char {target_char}, but the text has {len(text)} characters"
            )
        return Document(text, where, "" if domain is None else str(domain), labels, target, target_char)


def _label(name: str, value: object, where: str) -> Label:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise UsageError(
        f"harvest.dataset: {where}: label {name!r} is {type(value).__name__}, expected text, number, boolean or null"
    )


def _index(row: Mapping[str, Any], name: str, where: str) -> int | None:
    value = row.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise UsageError(f"harvest.dataset: {where}: {name!r} is {type(value).__name__}, expected a whole number")
