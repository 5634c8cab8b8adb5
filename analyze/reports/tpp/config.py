"""Settings of targeted probe perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...probes.text_settings import NS, check_ns, check_texts
from ..base import ReportConfig

MIN_CLASSES = 3
"""Of two classes each probe is the other's opposite, so that both lose the same and TPP is 0."""


@dataclass(frozen=True, kw_only=True)
class TppConfig(ReportConfig):
    """Whether setting a class's strongest latents to 0 hurts the probe of that class alone (Karvonen et al. 2024)."""

    kind: Literal["tpp"] = "tpp"
    needs_tokens: ClassVar[bool] = True
    by_default: ClassVar[bool] = False
    column: str = "domain"
    """Column of the documents whose values are the classes: domain, or one of harvest.label_columns."""
    classes: tuple[str, ...] | None = None
    """Values of the column; null: the most frequent ones that enough documents have."""
    max_classes: int = 5
    """Most classes, where `classes` is null."""
    documents: int = 1000
    """Most documents of a class; each class has as many as the smallest. A fifth of them score, the others fit."""
    min_documents: int = 50
    """Least documents of a class."""
    tokens: int = 128
    """First tokens of a document that are averaged."""
    ns: tuple[int, ...] = NS
    """Numbers of latents that are set to 0."""
    headline: int = 20
    """The one of them whose score is the headline; of a smaller coder the largest that it has."""

    def __post_init__(self) -> None:
        check_texts(self.documents, self.min_documents, self.tokens)
        if self.max_classes < MIN_CLASSES or (self.classes is not None and len(set(self.classes)) < MIN_CLASSES):
            raise ValueError("at least three classes: of two, each probe is the other's opposite and loses as much")
        check_ns(self.ns, self.headline)
