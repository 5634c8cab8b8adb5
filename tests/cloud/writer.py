"""Run as a program: one of several writers of a cache.

Arguments: path or address, rank, number of ranks, and the shard to die at: the writer is killed when the first
activations of that shard have been put into the bucket.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec
from sparse_pipeline.shared.cache.chunk_copies import ChunkCopies
from sparse_pipeline.shared.cache.writer import Share
from tests.synthetic import sparse_acts, token_table, write_missing

SITES = {"layer_01.resid_mid": 64, "layer_01.mlp_out": 32}
N_SEQ, CTX, SHARD_ROWS = 250, 16, 256


def die_at(shard: int) -> None:
    real = ChunkCopies.put

    def put(self: ChunkCopies, array: Any, at: int, *rest: Any) -> Any:
        found = real(self, array, at, *rest)
        if at == shard and array.name in SITES:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    ChunkCopies.put = put  # type: ignore[method-assign]


def main(path: str, rank: int = 0, ranks: int = 1, dies_at: int | None = None) -> None:
    if dies_at is not None:
        die_at(dies_at)
    table = token_table(N_SEQ, CTX, packing="document", doc_length=(4, 30))
    acts = sparse_acts(table, SITES)
    layout = Layout(N_SEQ, CTX, SHARD_ROWS, tuple(SiteSpec(name, width) for name, width in SITES.items()))
    with CacheWriter.create(
        path, layout, {"made_by": "tests"}, {"torch": torch.__version__}, Share(rank, ranks)
    ) as own:
        write_missing(own, table, acts)
        if not own.ranks_left():
            own.finish()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
