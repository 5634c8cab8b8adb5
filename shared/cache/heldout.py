"""Splits rows into training and held-out ones by document, so that no training row is evaluated.

Whole documents are held out: the ones with the smallest hash of their id, `round(share · documents)` of them. The
choice does not depend on the seed, the packing or the shards: every run over a cache with the same share holds out the
same rows. A document that crosses a sequence boundary is on one side of the split with all its rows, because the split
is by row and a document's rows carry its id. What remains shared is context: where documents are packed into one
sequence and attention crosses them, a held-out row may have attended to a training document. Its own text was never
trained on.

A BOS row belongs to the document that follows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..hashing import mix
from .reader import Cache
from .rows import trained_rows

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Training and held-out rows of a cache; padding, and rows of roles that are not trained on, are in neither set.

    Attributes:
        train: [n_rows] rows to train on.
        heldout: [n_rows] rows of held-out documents.
        n_documents: documents in the cache.
        n_heldout: held-out documents among them.
    """

    train: Mask
    heldout: Mask
    n_documents: int
    n_heldout: int


def split_rows(cache: Cache, heldout: float) -> Split:
    """Splits a cache's rows by document.

    Raises:
        UsageError: no row is left to train on.
    """
    content = trained_rows(cache.flags.reshape(-1))
    doc_id = cache.doc_id.reshape(-1)[content]
    # a document's rows follow one another, so looking at runs of equal ids spares sorting every row
    run_start = np.flatnonzero(np.concatenate(([True], doc_id[1:] != doc_id[:-1]))) if len(doc_id) else np.arange(0)
    run_doc = doc_id[run_start]
    documents = np.unique(run_doc)
    n_heldout = round(heldout * len(documents))
    chosen = documents[np.argsort(mix(documents.astype(np.uint64)), kind="stable")[:n_heldout]]
    mask = np.zeros(len(content), np.bool_)
    mask[content] = np.repeat(np.isin(run_doc, chosen), np.diff(np.append(run_start, len(doc_id))))
    train = content & ~mask
    if not train.any():
        raise UsageError(
            f"{cache.path} has no row to train on: {len(documents)} documents, of which {n_heldout} are held out",
            hint="lower data.heldout, or harvest more text",
        )
    return Split(train, mask, len(documents), n_heldout)
