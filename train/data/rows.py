"""Batches of chosen rows in ascending order, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ...shared.cache import Cache
from ...shared.cache.batch import Batch
from ...shared.device import to_device
from .stream import describe_rows


def row_batches(
    cache: Cache,
    sites: Sequence[str],
    rows: NDArray[np.int64],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The given rows, ascending, `batch_size` at a time; the last batch may be short.

    Args:
        rows: rows of the cache in any order; a row given twice is returned twice.
    """
    ordered = np.sort(rows)
    for start in range(0, len(ordered), batch_size):
        chosen = ordered[start : start + batch_size]
        acts = {site: to_device(cache.rows(site, chosen), device) for site in dict.fromkeys(sites)}
        about = describe_rows(cache, chosen)
        meta = {name: to_device(torch.from_numpy(values), device) for name, values in about.items()}
        yield Batch(acts=acts, **meta)


def thin(rows: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """At most `limit` of the rows, spread evenly from the first to the last."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]
