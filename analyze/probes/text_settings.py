"""What the settings of reports on documents (scr, tpp) share."""

from __future__ import annotations

NS = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of latents that are set to 0, those of SAEBench."""


def check_texts(documents: int, min_documents: int, tokens: int) -> None:
    """Raises ValueError for numbers of documents, or of their tokens, that cannot be."""
    if min_documents < 2 or documents < min_documents or tokens < 1:
        raise ValueError("min_documents is at least 2, documents at least min_documents, tokens at least 1")


def check_ns(ns: tuple[int, ...], headline: int) -> None:
    """Raises ValueError for numbers of latents below 1, or a headline that is none of them."""
    if min(ns, default=0) < 1 or headline not in ns:
        raise ValueError("ns are at least 1 and headline is one of them")
