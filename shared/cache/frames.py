"""A cache's documents as a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .documents import read_documents
from .reader import Cache
from .rows import text_rows

if TYPE_CHECKING:
    import pandas as pd


def documents_frame(cache: Cache) -> pd.DataFrame:
    """One row for each document, by its doc_id: source, domain, rows (excluding padding), first_row, target_row, and a
    column for each label.
    """
    import pandas as pd

    real = text_rows(cache.flags).reshape(-1)
    ids, first, counts = np.unique(cache.doc_id.reshape(-1)[real], return_index=True, return_counts=True)
    frame = pd.DataFrame({"rows": counts, "first_row": np.flatnonzero(real)[first]}, index=pd.Index(ids, name="doc_id"))
    records = {record.doc_id: record for record in read_documents(cache.path)}
    known = [records.get(int(document)) for document in ids]
    frame.insert(0, "source", [one.source if one else "" for one in known])
    frame.insert(1, "domain", [one.domain if one else "" for one in known])
    frame["target_row"] = pd.array([one.target_row if one else None for one in known], dtype="Int64")
    for label in dict.fromkeys(name for one in known if one for name in one.labels):
        frame[label] = [one.labels.get(label) if one else None for one in known]
    return frame
