"""Evaluation on held-out rows: FVU excluding and including position 0, and L0. Sums are float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..shared.cache import Cache
from ..shared.cache.batch import Batch
from ..shared.cache.heldout import Split
from ..shared.coders import Coder
from ..shared.device import to_device
from ..shared.fvu import FVU
from ..shared.joint_names import parts_of
from .data.rows import row_batches, thin

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Evaluation:
    """Figures over a fixed set of rows.

    Attributes:
        fvu: Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over the rows excluding position 0, ȳ their mean in the cache; None: no rows.
        fvu_with_bos: the same over all rows, ȳ the mean of all rows of the cache.
        fvu_dims: mean over dimensions of the FVU of each, excluding position 0; None: no rows.
        fvu_without_massive: as `fvu`, excluding the target's massive rows too; `fvu_dims_without_massive` likewise.
        l0: mean number of active latents, over the rows excluding position 0.
        rows: number of rows, including position 0.
        by_site: of a joint target, part → its own `fvu`, `fvu_dims` and the two without its massive rows; None for one
            site. The figures above then count each part in units of its variance (shared/cache/joint.py).
    """

    fvu: float | None
    fvu_with_bos: float | None
    fvu_dims: float | None
    fvu_without_massive: float | None
    fvu_dims_without_massive: float | None
    l0: float | None
    rows: int
    by_site: dict[str, dict[str, float | None]] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "by_site" or value is not None}


def evaluation_rows(split: Split, limit: int) -> NDArray[np.int64]:
    """Held-out rows (rows trained on, where none are held out), at most `limit`, spread evenly."""
    return thin(np.flatnonzero(split.heldout if split.heldout.any() else split.train), limit)


@torch.no_grad()
def evaluate(
    coders: Sequence[tuple[Coder, str, str]], cache: Cache, rows: NDArray[np.int64], device: torch.device | str = "cpu"
) -> list[Evaluation]:
    """Evaluate several coders on one read of the rows. The sums stay on the device until the last batch.

    Args:
        coders: (coder, source site, target site) each.
        rows: [n] rows of the cache.
        device: device of the coders.
    """
    meters = [_Meters(coder, source, target, cache, device) for coder, source, target in coders]
    training = [coder.training for coder, _, _ in coders]
    sites = sorted({site for _, source, target in coders for site in (source, target)})
    try:
        for coder, _, _ in coders:
            coder.eval()
        for batch in row_batches(cache, sites, rows, ROWS_AT_ONCE, device):
            for meter in meters:
                meter.update(batch)
    finally:
        for (coder, _, _), mode in zip(coders, training, strict=True):
            coder.train(mode)
    return [meter.result() for meter in meters]


class _Meters:
    """The running sums of one coder, on its device."""

    def __init__(self, coder: Coder, source: str, target: str, cache: Cache, device: torch.device | str) -> None:
        self.coder, self.source, self.target = coder, source, target
        stats, scale = cache.stats(target), cache.balance(target)
        outliers = cache.outliers(target)
        self.rest, self.all, self.ordinary = (
            FVU(torch.from_numpy(one.mean), None if scale is None else torch.from_numpy(scale))
            for one in (stats.rest, stats.all, outliers.ordinary)
        )
        self.massive = to_device(torch.from_numpy(outliers.mask(cache.n_rows)), device)
        self.active = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, batch: Batch) -> None:
        x, y = batch.acts[self.source], batch.acts[self.target]
        codes = self.coder.encode(x)
        y_hat = self.coder.decode(codes, x)
        rest = batch.position > 0
        self.rest.update(y, y_hat, rest)
        self.all.update(y, y_hat)
        self.ordinary.update(y, y_hat, rest & ~self.massive[batch.row.long()])
        self.active += (codes.l0() * rest).sum()

    def result(self) -> Evaluation:
        l0 = int(self.active) / self.rest.rows if self.rest.rows else None
        return Evaluation(
            fvu=self.rest.value,
            fvu_with_bos=self.all.value,
            fvu_dims=self.rest.mean_over_dimensions,
            fvu_without_massive=self.ordinary.value,
            fvu_dims_without_massive=self.ordinary.mean_over_dimensions,
            l0=l0,
            rows=self.all.rows,
            by_site=self._by_site() if self.coder.n_targets > 1 else None,
        )

    def _by_site(self) -> dict[str, dict[str, float | None]]:
        found, start = {}, 0
        for site, width in zip(parts_of(self.target), self.coder.target_widths, strict=True):
            fvu, dims = self.rest.part(start, start + width)
            ordinary, ordinary_dims = self.ordinary.part(start, start + width)
            found[site] = {
                "fvu": fvu,
                "fvu_dims": dims,
                "fvu_without_massive": ordinary,
                "fvu_dims_without_massive": ordinary_dims,
            }
            start += width
        return found
