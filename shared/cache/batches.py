"""Batches of a cache's rows for loops of your own: in order, or shuffled over the whole cache.

Shuffled, every epoch permutes all blocks of 128 rows by (seed, epoch) and draws rows at random from a pool of them, as
training does: each row comes exactly once in an epoch, and reading stays sequential enough for a disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from .batch import Batch
from .blocks import WindowPlan, make_blocks, window_rows
from .format import positions
from .reader import Cache, open_cache
from .rows import counted_rows, rest_rows

BLOCK_ROWS = 128
POOL_ROWS = 1 << 17


@dataclass(frozen=True)
class BatchSettings:
    """Which rows, in which order.

    Attributes:
        sites: to read; empty: all.
        batch_size: rows of a batch; the last one of an epoch is shorter.
        shuffle: in random order; else in the order of the cache.
        seed, epoch: decide the random order.
        position_0: include rows at position 0.
        pool_rows: rows that the shuffled order draws from at a time; they are held in memory.
    """

    sites: tuple[str, ...] = ()
    batch_size: int = 4096
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0
    position_0: bool = True
    pool_rows: int = POOL_ROWS


def batches(cache: Cache, settings: BatchSettings, worker: int = 0, workers: int = 1) -> Iterator[Batch]:
    """The batches of one epoch; padding is never in them.

    Args:
        worker, workers: of several readers, this one yields the pools with number ≡ worker (mod workers).

    Raises:
        UsageError: a site was not found.
    """
    sites = settings.sites or tuple(cache.sites)
    for site in sites:
        cache.spec(site)
    flags = cache.flags
    wanted = counted_rows(flags).reshape(-1)
    if not settings.position_0:
        wanted = wanted & rest_rows(flags, cache.ctx).reshape(-1)
    blocks = make_blocks(cache.n_rows, cache.layout.shard_rows, BLOCK_ROWS, wanted)
    plan = WindowPlan(len(blocks), max(1, settings.pool_rows // BLOCK_ROWS), settings.seed)
    held: list[Batch] = []
    for window in range(worker, plan.n_windows, workers):
        chosen = np.arange(len(blocks))[window * plan.blocks_per_window :][: plan.blocks_per_window]
        if settings.shuffle:
            chosen = plan.blocks(settings.epoch, window)
        rows = window_rows(blocks, chosen)
        rows = rows[wanted[rows]]
        pool = {site: cache.rows(site, rows) for site in sites}
        order = np.arange(len(rows))
        if settings.shuffle:
            order = np.random.default_rng((settings.seed, settings.epoch, window)).permutation(len(rows))
        whole = _batch(cache, {site: values[order] for site, values in pool.items()}, rows[order])
        held.append(whole)
        yield from _full(held, settings.batch_size)
    if held and len(held[0]):
        yield _joined(held)


def _full(held: list[Batch], size: int) -> Iterator[Batch]:
    """Cuts batches of `size` rows off what is held; the rest stays in `held`."""
    joined, start = _joined(held), 0
    while len(joined) - start >= size:
        yield _cut(joined, start, start + size)
        start += size
    held[:] = [_cut(joined, start, len(joined))]


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    fields = ("tokens", "position", "pos_in_doc", "doc_id", "flags", "row")
    acts = {site: values[start:stop] for site, values in batch.acts.items()}
    return replace(batch, acts=acts, **{name: getattr(batch, name)[start:stop] for name in fields})


def _joined(held: Sequence[Batch]) -> Batch:
    if len(held) == 1:
        return held[0]
    fields = ("tokens", "position", "pos_in_doc", "doc_id", "flags", "row")
    acts = {site: torch.cat([batch.acts[site] for batch in held]) for site in held[0].acts}
    return Batch(acts=acts, **{name: torch.cat([getattr(batch, name) for batch in held]) for name in fields})


def _batch(cache: Cache, acts: dict[str, torch.Tensor], rows: NDArray[np.int64]) -> Batch:
    def taken(values: NDArray[Any], dtype: Any) -> torch.Tensor:
        return torch.from_numpy(values.reshape(-1)[rows].astype(dtype))

    flags = cache.flags.reshape(-1)[rows]
    return Batch(
        acts=acts,
        tokens=taken(cache.tokens, np.int32),
        position=torch.from_numpy(positions(rows, flags, cache.ctx).astype(np.int32)),
        pos_in_doc=taken(cache.pos_in_doc, np.int32),
        doc_id=taken(cache.doc_id, np.int64),
        flags=torch.from_numpy(flags.copy()),
        row=torch.from_numpy(rows.copy()),
    )


class CacheDataset(IterableDataset[Batch]):
    """The batches as a dataset of PyTorch, for `DataLoader(dataset, batch_size=None)`; workers share the rows.

    Args:
        path, identity: of the cache; each worker opens it.
        settings: which rows; `set_epoch` changes the order of the next pass.
    """

    def __init__(self, path: Path, identity: str, settings: BatchSettings) -> None:
        super().__init__()
        self.path, self.identity, self.settings = path, identity, settings

    def set_epoch(self, epoch: int) -> None:
        """The order of the next pass, where it is shuffled."""
        self.settings = replace(self.settings, epoch=epoch)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        return batches(open_cache(self.path, identity=self.identity), self.settings, worker, workers)
