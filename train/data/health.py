"""What a coder cannot be trained on, named from a site's statistics before the first step."""

from __future__ import annotations

import numpy as np

from ...shared.cache import Cache
from ...shared.cache.rows import counted_rows
from ...shared.errors import DataError

LARGEST = 1e18
"""Root mean square beyond which squares leave float32."""

SMALLEST = 1e-18
"""Root mean square below which squares vanish in float32."""


def check_trainable(cache: Cache, site: str, role: str) -> None:
    """Refuses a site whose rows carry nothing that a coder could learn in float32.

    Args:
        role: "source" or "target", for the message.

    Raises:
        DataError: rows that are all alike, all zero, or too large or too small for float32 squares; or none is finite.
    """
    stats = cache.stats(site)
    where = f"train.{role}: {site} in {cache.path}"
    other = "train on another site, or harvest again with harvest.storage: float32 or another harvest.dtype"
    rows = stats.all
    if not rows.n and stats.nonfinite:
        raise DataError(f"{where}: every row holds an infinity or a NaN", other)
    if not rows.n:
        return
    rms = float(np.sqrt(rows.mean_sq_norm / len(rows.sum)))
    if rms > LARGEST:
        row, value = _largest(cache, site)
        raise DataError(f"{where}: row {row:,} holds {value:.3g}, whose square is beyond float32", other)
    if not rows.sum.any() and rms == 0:
        raise DataError(f"{where} is zero in every row: there is nothing to learn", other)
    if rms < SMALLEST:
        raise DataError(
            f"{where} has a root mean square of {rms:.3g}: squares of such numbers vanish in float32", other
        )
    # of float64 sums, whose rounding leaves about 1e-16 of the mean square
    if float(stats.rest.var.sum()) <= 1e-12 * stats.rest.mean_sq_norm and stats.rest.n > 1:
        raise DataError(f"{where} is the same in every row outside position 0: its variance is zero", other)


def _largest(cache: Cache, site: str) -> tuple[int, float]:
    """Row and value of the largest magnitude among the rows that are text."""
    best, at = 0.0, 0
    for shard in cache.shards:
        seqs = cache.layout.seqs_of(shard)
        kept = counted_rows(cache.flags[seqs.start : seqs.stop].reshape(-1))
        magnitude = np.where(kept, cache.chunk(site, shard).double().abs().amax(dim=1).numpy(), 0.0)
        row = int(magnitude.argmax())
        if magnitude[row] > best:
            best, at = float(magnitude[row]), cache.layout.rows_of(shard).start + row
    return at, best
