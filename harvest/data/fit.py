"""Whether the tokens of a dataset are ones that the model can read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from ...shared.errors import UsageError
from .pack import TokenDocument

MOST_UNKNOWN = 0.1
"""Largest share of unknown tokens in the first documents; text that a tokenizer was made for has almost none."""

_FIRST_DOCUMENTS = 512
_FIRST_TOKENS = 50_000


def embedded(documents: Iterable[TokenDocument], vocabulary: int, model: str) -> Iterator[TokenDocument]:
    """The same documents.

    Args:
        vocabulary: number of ids that the model embeds.

    Raises:
        UsageError: a token has an id that the model does not embed.
    """
    for document in documents:
        if len(document.tokens):
            low, high = int(document.tokens.min()), int(document.tokens.max())
            if low < 0 or high >= vocabulary:
                bad = low if low < 0 else high
                place = document.start + int(np.flatnonzero(document.tokens == bad)[0])
                raise UsageError(
                    f"harvest.dataset: {document.source or f'document {document.index}'}: token {place} has id {bad}, "
                    f"but {model} embeds ids from 0 to {vocabulary - 1:,}",
                    hint="use the tokenizer that was published with the model, or leave this document out",
                )
        yield document


def refuse_unknown(documents: Iterable[TokenDocument], unknown: int | None, model: str, dataset: str) -> None:
    """Checks the first documents for unknown tokens. A tokenizer without such a token (None) passes.

    Raises:
        UsageError: more than :data:`MOST_UNKNOWN` of the tokens are unknown.
    """
    if unknown is None:
        return
    tokens = found = 0
    for document in islice(documents, _FIRST_DOCUMENTS):
        tokens += len(document.tokens)
        found += int((document.tokens == unknown).sum())
        if tokens >= _FIRST_TOKENS:
            break
    if found > MOST_UNKNOWN * tokens:
        raise UsageError(
            f"harvest.model: {found / tokens:.0%} of the first {tokens:,} tokens of {dataset} are unknown to the "
            f"tokenizer of {model} (id {unknown}); it is incomplete, or made for other text",
            hint="copy the tokenizer.json that was published with the model into its folder, or choose text in a "
            "language that it knows",
        )
