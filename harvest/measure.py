"""Statistics of the rows of a unit, summed on the device that computes them; a CPU's writers sum them instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..shared.cache import SiteSpec
from ..shared.cache.stats import SiteStats
from ..shared.cache.tensor_stats import Classes, TensorSums
from .data.pack import Block


class UnitStats:
    """Sums of every shard of a unit.

    Args:
        sites: those measured here. A quantised site is not: its statistics describe what a reader gets back.
        seqs_per_shard: sequences of a shard; the unit's last shard may have fewer.
    """

    def __init__(self, block: Block, sites: Sequence[SiteSpec], seqs_per_shard: int, device: torch.device) -> None:
        ctx = block.tokens.shape[1]
        rows = seqs_per_shard * ctx
        self._step, total = rows, block.tokens.size
        classes = Classes(block.flags.reshape(-1), ctx, device)
        cuts = [slice(start, min(start + rows, total)) for start in range(0, total, rows)]
        self._sums = {
            site.name: [TensorSums(classes, cut, site.width) for cut in cuts] for site in sites if not site.quantised
        }

    def add(self, site: str, start: int, x: Tensor) -> None:
        """Adds rows [n, d] of the unit from number `start` on, in the dtype that is stored."""
        end = start + len(x)
        while start < end and site in self._sums:
            shard = start // self._step
            stop = min(end, (shard + 1) * self._step)
            self._sums[site][shard].add(start, x[len(x) - (end - start) : len(x) - (end - stop)])
            start = stop

    def send(self) -> None:
        """Begins the copies to the host, on the current stream."""
        for sums in self._sums.values():
            for one in sums:
                one.send()

    def of(self, first_row: int) -> dict[str, SiteStats]:
        """Site → statistics of the shard that begins at this row of the unit. The copies have arrived."""
        return {site: sums[first_row // self._step].stats() for site, sums in self._sums.items()}
