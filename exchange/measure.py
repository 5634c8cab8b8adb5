"""What an export changes: codes and reconstructions of the trained coder against those of the written weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..shared.cache import Cache
from ..shared.cache.heldout import split_rows
from ..shared.cache.rows import counted_rows, rest_rows
from ..shared.coders import Coder
from ..shared.memory import rows_within
from .plain import Plain

BATCH = 512
"""Rows whose codes are formed at once."""

DEFAULT_SHARE = 0.1
"""Share of documents that count as held out for a coder that was not trained on this cache."""


@dataclass(frozen=True)
class Rows:
    """Rows of a cache for one coder.

    Attributes:
        fit: [n, d_in] source rows of documents that are not held out, to fit thresholds on.
        x: [n, d_in], y: [n, d_out] rows of held-out documents, to measure on. mean: [d_out] of the target.
        which: what they are, in words.
    """

    fit: Tensor
    x: Tensor
    y: Tensor
    mean: Tensor
    which: str


@dataclass(frozen=True)
class Measured:
    """The trained coder (`run`) against the written weights (`export`) on the same rows.

    Attributes:
        fvu_run, fvu_export: fraction of variance unexplained. l0_run, l0_export: mean number of codes.
        max_code_difference, max_reconstruction_difference: largest absolute differences; max_code and
            max_reconstruction are the largest absolute values, to compare them with.
        rows_with_other_latents: share of rows on which not the same latents fire.
    """

    rows: int
    which: str
    fvu_run: float
    fvu_export: float
    l0_run: float
    l0_export: float
    max_code_difference: float
    max_code: float
    max_reconstruction_difference: float
    max_reconstruction: float
    rows_with_other_latents: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"FVU {self.fvu_run:.4f} → {self.fvu_export:.4f}, L0 {self.l0_run:.2f} → {self.l0_export:.2f}, largest "
            f"difference of a code {self.max_code_difference:.2g}, of a reconstruction "
            f"{self.max_reconstruction_difference:.2g} ({self.rows:,} {self.which})"
        )


def rows_for(cache: Cache, sites: tuple[str, str], heldout: float, most: int) -> Rows:
    """Rows to fit and to measure on, excluding padding and position 0, spread evenly over the cache.

    Args:
        sites: source and target.
        heldout: the share of documents that training held out; 0: it held out none, or was not on this cache.
        most: largest number of rows of each kind.
    """
    cache = cache.without_nonfinite(sites)
    split = split_rows(cache, heldout or DEFAULT_SHARE)
    flags = cache.flags.reshape(-1)
    counted = rest_rows(flags, cache.ctx) if cache.ctx > 1 else counted_rows(flags)
    trained, held = _spread(split.train & counted, most), _spread(split.heldout & counted, most)
    which = "held-out rows"
    if not len(held):  # a cache of one document
        held, which = trained, "rows"
    elif not heldout:
        which = "rows of a tenth of the documents"
    source, target = sites
    return Rows(
        cache.rows(source, trained).float(),
        cache.rows(source, held).float(),
        cache.rows(target, held).float(),
        torch.from_numpy(cache.stats(target).rest.mean).float(),
        which,
    )


def _spread(mask: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    index = np.flatnonzero(mask)
    return index if len(index) <= most else index[np.arange(most) * len(index) // most]


@torch.no_grad()
def measure(coder: Coder, written: Plain, rows: Rows) -> Measured:
    """Compare on the held-out rows, in float32."""
    single = written.to(torch.float32)
    sums = dict.fromkeys(("fvu_run", "fvu_export", "total", "l0_run", "l0_export", "other"), 0.0)
    most = dict.fromkeys(("code_difference", "code", "reconstruction_difference", "reconstruction"), 0.0)
    step = rows_within(4 * coder.n_latents, BATCH)
    for x, y in zip(torch.split(rows.x, step), torch.split(rows.y, step), strict=True):
        codes = coder.encode(x)
        ours, theirs = codes.dense(), single.encode(x)
        y_ours, y_theirs = coder.decode(codes, x), single.decode(theirs, x)
        for name, out in (("fvu_run", y_ours), ("fvu_export", y_theirs)):
            sums[name] += float((y - out).double().square().sum())
        sums["total"] += float((y - rows.mean).double().square().sum())
        sums["l0_run"] += float((ours > 0).sum())
        sums["l0_export"] += float((theirs != 0).sum())
        sums["other"] += float(((ours > 0) != (theirs != 0)).any(dim=1).sum())
        for name, a, b in (("code", ours, theirs), ("reconstruction", y_ours, y_theirs)):
            most[f"{name}_difference"] = max(most[f"{name}_difference"], float((a - b).abs().max()))
            most[name] = max(most[name], float(a.abs().max()))
    n, total = len(rows.x), sums["total"] or 1.0
    return Measured(
        rows=n,
        which=rows.which,
        fvu_run=sums["fvu_run"] / total,
        fvu_export=sums["fvu_export"] / total,
        l0_run=sums["l0_run"] / n,
        l0_export=sums["l0_export"] / n,
        rows_with_other_latents=sums["other"] / n,
        **{f"max_{name}": value for name, value in most.items()},
    )
