"""What a coder is worth on rows it was not trained on: FVU without position 0 and with it, L0. Sums are float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.cache import Cache
from shared.coders import Coder
from shared.metrics import FVU

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Evaluation:
    """Figures over a fixed set of rows.

    Attributes:
        fvu: Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over the rows without position 0, ȳ their mean in the whole cache; None without rows.
        fvu_with_bos: the same over all rows, ȳ the mean of all rows of the cache.
        l0: mean number of active latents, rows without position 0.
        rows: how many rows, position 0 included.
    """

    fvu: float | None
    fvu_with_bos: float | None
    l0: float | None
    rows: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluation_rows(heldout: NDArray[np.bool_], train: NDArray[np.bool_], limit: int) -> NDArray[np.int64]:
    """Rows to evaluate on, ascending: the held-out ones (the trained ones if none are held out), every n-th if over
    `limit`."""
    rows = np.flatnonzero(heldout if heldout.any() else train)
    return rows[:: max(1, -(-len(rows) // limit))]


@torch.no_grad()
def evaluate(coders: Sequence[tuple[Coder, str, str]], cache: Cache, rows: NDArray[np.int64]) -> list[Evaluation]:
    """Evaluate several coders on one read of the rows.

    Args:
        coders: (coder, source site, target site) each.
        rows: [n] ascending rows of the cache.
    """
    meters = [_Meters(coder, source, target, cache) for coder, source, target in coders]
    training = [coder.training for coder, _, _ in coders]
    try:
        for coder, _, _ in coders:
            coder.eval()
        sites = sorted({site for _, source, target in coders for site in (source, target)})
        for acts, position in _read(cache, sites, rows):
            for meter in meters:
                meter.update(acts, position)
    finally:
        for (coder, _, _), mode in zip(coders, training, strict=True):
            coder.train(mode)
    return [meter.result() for meter in meters]


def _read(cache: Cache, sites: Sequence[str], rows: NDArray[np.int64]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches of (activations by site, position), shard by shard."""
    for shard in cache.shards:
        span = cache.layout.rows_of(shard)
        own = rows[np.searchsorted(rows, span.start) : np.searchsorted(rows, span.stop)]
        if not len(own):
            continue
        chunks = {site: cache.chunk(site, shard) for site in sites}
        for start in range(0, len(own), ROWS_AT_ONCE):
            part = own[start : start + ROWS_AT_ONCE]
            index = torch.from_numpy(part - span.start)
            yield {site: chunk[index] for site, chunk in chunks.items()}, torch.from_numpy(part % cache.ctx)


class _Meters:
    """The running sums of one coder."""

    def __init__(self, coder: Coder, source: str, target: str, cache: Cache) -> None:
        self.coder, self.source, self.target = coder, source, target
        stats = cache.stats(target)
        self.rest, self.all = FVU(torch.from_numpy(stats.rest.mean)), FVU(torch.from_numpy(stats.all.mean))
        self.active = 0

    def update(self, acts: dict[str, Tensor], position: Tensor) -> None:
        device = self.coder.w_enc.device
        x, y = acts[self.source].to(device), acts[self.target].to(device)
        codes = self.coder.encode(x)
        y_hat = self.coder.decode(codes, x)
        rest = (position > 0).to(device)
        self.rest.update(y[rest], y_hat[rest])
        self.all.update(y, y_hat)
        self.active += int(codes.l0()[rest].sum())

    def result(self) -> Evaluation:
        l0 = self.active / self.rest.rows if self.rest.rows else None
        return Evaluation(self.rest.value, self.all.value, l0, self.all.rows)
