"""A cache and a coder in which what is to be found was put there by hand.

The coder reads one site latent by latent (its encoder is the identity), so the codes of a row are the numbers that were
written into the cache. The decoder's rows lie in a wide space of their own, so their cosines are free to choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from sparse_pipeline.analyze.run import AnalyzeResult
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import Run, create_run
from tests.synthetic import TokenTable, make_cache, place_and_position, token_table

SOURCE, TARGET = "layer_01.resid_mid", "layer_01.mlp_out"
F, D_OUT, CTX, N_SEQ = 64, 512, 31, 320

STRUCTURAL = (0, 1, 2)  # one cluster: the same firing, nearly the same direction
FUNCTIONAL = (3, 4)  # the same firing, other directions
BOS_LOCKED = (5, 6)  # constant at position 0, hardly anywhere else, and then independently
POSITION_LOCKED = 7  # only in the fourth tenth of the positions after 0
SPLIT = (8, 9)  # one direction, never together
ANTIPODAL = (10, 11)  # opposite directions, never together
RARE, DEAD = 12, 13
ONE_TOKEN = 14  # fires on one token only
OUTLYING = 400  # the dimension of the target in which half of the rows with the strongest codes are massive
NAMED = (14, 3, 4, 0)  # the report shows their correlations as a matrix


@dataclass(frozen=True)
class Planted:
    cache: Cache
    coder: Coder
    z: NDArray[np.float32]
    y: NDArray[np.float32]
    table: TokenTable

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """[n] in the sequence, 0 at every BOS."""
        return place_and_position(self.table)[1]

    def context(self, row: int, before: int = 20) -> tuple[int, ...]:
        """The tokens of a row and up to `before` ahead of it, from the last BOS on."""
        begin = row
        while self.position[begin] > 0 and begin > row - before:
            begin -= 1
        return tuple(self.table.tokens.reshape(-1)[begin : row + 1])

    def run(self, folder: Path, name: str = "planted") -> Run:
        """The coder as a finished run."""
        run = create_run(folder, name, {"seed": 0}, {})
        run.finish(self.coder, {"steps": 1, "tokens": 1}, run_extra(self.cache))
        return run


@dataclass(frozen=True)
class World:
    """A planted cache, the coder's run on it, and what the analysis wrote."""

    made: Planted
    result: AnalyzeResult
    document: dict[str, Any]

    def table(self, name: str) -> dict[str, list[Any]]:
        """The columns of one Parquet file of the run."""
        found: dict[str, list[Any]] = pq.read_table(self.folder / f"{name}.parquet").to_pydict()
        return found

    @property
    def folder(self) -> Path:
        """The files of the run."""
        return self.result.report.parent / "planted"

    def rows(self, which: Literal["rest", "all"]) -> NDArray[np.bool_]:
        """Rows that are not padding [n], excluding or including position 0."""
        text = (self.made.table.flags.reshape(-1) & 4) == 0
        rows: NDArray[np.bool_] = text & (self.made.position > 0) if which == "rest" else text
        return rows


def run_extra(cache: Cache) -> dict[str, Any]:
    return {
        "source": SOURCE,
        "target": TARGET,
        "cache": {"path": str(cache.path), "identity": cache.identity},
        "training": {"seed": 0},
    }


def planted(path: Path, seed: int = 0, packing: str = "concat") -> Planted:
    """Write the cache below `path` and build the coder."""
    rng = np.random.default_rng(seed)
    table = token_table(N_SEQ, CTX, seed, packing=packing, doc_length=(20, CTX - 1))
    tokens, position = table.tokens.reshape(-1), place_and_position(table)[1]
    n = len(tokens)
    first = position == 0

    def draw(rate: float, where: NDArray[np.bool_] | bool = True) -> NDArray[np.float32]:
        fires = (rng.random(n) < rate) & where & ~first
        return np.where(fires, rng.exponential(1.0, n) + 0.2, 0).astype(np.float32)

    z = np.stack([draw(0.03) for _ in range(F)], axis=1)
    for group in (STRUCTURAL, FUNCTIONAL):
        base = draw(0.03)
        for copy in group:
            z[:, copy] = base * (1 + 0.05 * rng.standard_normal(n)).clip(0.7, 1.3)
    for latent in BOS_LOCKED:
        z[:, latent] = draw(0.008)
        z[first, latent] = 9.0
    tenth = (position - 1) * 10 // (CTX - 1)
    z[:, POSITION_LOCKED] = draw(0.3, tenth == 3)
    for a, b in (SPLIT, ANTIPODAL):
        z[:, b] = np.where(z[:, a] > 0, 0, z[:, b])
    z[:, RARE] = 0
    z[rng.choice(np.flatnonzero(~first), 20, replace=False), RARE] = 1.0
    z[:, DEAD] = 0
    z[:, ONE_TOKEN] = draw(0.9, tokens == 7)
    padding = (table.flags.reshape(-1) & 4) != 0
    z[padding] = 0

    w_dec = rng.standard_normal((F, D_OUT)).astype(np.float32)
    for copy in STRUCTURAL[1:]:
        w_dec[copy] = w_dec[STRUCTURAL[0]] + 0.1 * w_dec[copy]
    w_dec[SPLIT[1]] = w_dec[SPLIT[0]] + 0.1 * w_dec[SPLIT[1]]
    w_dec[ANTIPODAL[1]] = -w_dec[ANTIPODAL[0]] + 0.1 * w_dec[ANTIPODAL[1]]
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    y = (z @ w_dec + 0.02 * rng.standard_normal((n, D_OUT)).astype(np.float32)).astype(np.float32)
    strongest = np.argsort(-np.where(first, 0, z.max(axis=1)), kind="stable")
    y[strongest[:40:2], OUTLYING] = 40
    cache = make_cache(
        path, N_SEQ, CTX, acts={SOURCE: torch.from_numpy(z), TARGET: torch.from_numpy(y)}, table=table, shard_rows=1240
    )
    coder = build_coder(TopKConfig(latents=F, k=F, decoder_norm="unit"), F, D_OUT, tied=False)
    with torch.no_grad():
        coder.w_enc.copy_(torch.eye(F))
        coder.w_dec.copy_(torch.from_numpy(w_dec))
        coder.b_dec.zero_()
    return Planted(cache, coder.eval(), z, y, table)
