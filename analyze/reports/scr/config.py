"""Settings of spurious correlation removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...probes.text_settings import NS, check_ns, check_texts
from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class ScrConfig(ReportConfig):
    """Whether a probe that confuses two labels is cured by setting one label's latents to 0 (Karvonen et al. 2024)."""

    kind: Literal["scr"] = "scr"
    needs_tokens: ClassVar[bool] = True
    by_default: ClassVar[bool] = False
    columns: tuple[str, str] | None = None
    """The two labels: columns of the documents (domain, harvest.label_columns); null: the first two that they have."""
    pairs: tuple[tuple[str, str], ...] | None = None
    """Pairs of values of the first column; null: the most frequent two, the next two and so on, while there are enough
    documents."""
    max_pairs: int = 4
    """Most pairs, where `pairs` is null."""
    values: tuple[str, str] | None = None
    """Two values of the second column; null: the most frequent ones."""
    documents: int = 1250
    """Most documents of each of a pair's four combinations of values. A fifth of them score, the others fit."""
    min_documents: int = 50
    """Least documents of each combination; of the two that the confused probe sees, twice that."""
    tokens: int = 128
    """First tokens of a document that are averaged."""
    ns: tuple[int, ...] = NS
    """Numbers of latents that are set to 0."""
    headline: int = 20
    """The one of them whose score is the headline; of a smaller coder the largest that it has."""

    def __post_init__(self) -> None:
        check_texts(self.documents, self.min_documents, self.tokens)
        for two in (self.columns, self.values, *(self.pairs or ())):
            if two is not None and two[0] == two[1]:
                raise ValueError(f"{two[0]!r} is named twice, expected two different ones")
        if self.max_pairs < 1 or self.pairs == ():
            raise ValueError("there is at least one pair")
        check_ns(self.ns, self.headline)
