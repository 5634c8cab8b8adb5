"""The arithmetic of a stream over a cache that does not exist yet, from the shapes that its harvest plans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...shared.cache import Flag, Layout
from ...shared.joint_names import stored_sites
from ...shared.memory import free_memory
from ..samplers.base import Sampler, Window
from .config import DataConfig
from .memory import choose_pool
from .stream import META_BYTES, StreamPlan

_SEEN_ROWS = 1 << 20
"""Rows of the made-up window on which the sampler's share is measured."""


def estimate_stream(
    layout: Layout, sites: Sequence[str], config: DataConfig, sampler: Sampler, device: torch.device, reserved: int = 0
) -> StreamPlan:
    """As `Stream.plan`, before the harvest: held-out documents have exactly their share of the rows, no row is padding
    or massive, and every sequence has one row at position 0. A real split differs by a fraction of a document.

    Args:
        layout: shapes that the harvest plans.
        sites: arrays that a batch carries.
        reserved: as for `open_stream`.
    """
    specs = [spec for spec in layout.sites if spec.name in stored_sites(sites)]
    row_bytes = sum(spec.row_bytes for spec in specs)
    heldout = round(layout.n_rows * config.heldout)
    train = layout.n_rows - heldout
    rows_per_epoch = round(train * _share_drawn(sampler, min(train, _SEEN_ROWS), layout.ctx, config))
    free = max(free_memory(device) - reserved, 0)
    size = choose_pool(config, layout.n_rows, row_bytes + META_BYTES, free, on_device=device.type != "cpu")
    window = min(max(size.window_rows, config.block_rows), layout.n_rows)
    pooled = {"mapped": 0, "memory": layout.n_rows, "pools": window * (1 + config.prefetch)}[size.reading]
    total = rows_per_epoch * config.epochs if config.tokens is None else config.tokens
    return StreamPlan(
        total_steps=total // config.batch_size,
        rows_per_epoch=rows_per_epoch,
        train_rows=train,
        heldout_rows=heldout,
        n_documents=0,
        n_heldout=0,
        window_rows=window,
        n_windows=-(-layout.n_rows // window),
        reading=size.reading,
        pool_bytes=pooled * row_bytes,
        row_bytes=row_bytes,
    )


def _share_drawn(sampler: Sampler, n_rows: int, ctx: int, config: DataConfig) -> float:
    """Share of the rows of whole sequences that the sampler draws."""
    rows = np.arange(max(n_rows // ctx, 1) * ctx, dtype=np.int64)
    position = (rows % ctx).astype(np.int32)
    flags = np.where(position == 0, int(Flag.BOS), 0).astype(np.uint8)
    window = Window(rows, position, flags, config.seed, 0, 0, ctx, config.batch_size)
    return sampler.count(window) / len(rows)
