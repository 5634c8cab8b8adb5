"""Keeping the strongest activations of each latent while it trains, with a cap on those at position 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shared.cache import Cache, Flag
from ...shared.coders import Codes
from ...shared.hashing import mix
from ..data.batch import Batch
from .config import SamplesConfig

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Kept:
    """Samples of every latent, strongest first; value 0 where there are fewer.

    Of equally strong ones the lower row comes first, and position 0 last.

    Attributes:
        value, row, step, key, bos: [F, K]. key: equal for equal contexts. bos: the sample lies at position 0.
    """

    value: NDArray[np.float32]
    row: Index
    step: NDArray[np.int32]
    key: NDArray[np.uint64]
    bos: NDArray[np.bool_]

    @property
    def count(self) -> Index:
        """Samples of each latent [F]."""
        count: Index = (self.value > 0).sum(axis=1)
        return count


class SampleCollector:
    """The largest activations of each latent so far, at most a share of them at position 0.

    What is kept follows from all activations that were shown, in whatever order they came: of each latent the
    `per_latent` largest with distinct contexts, where position 0 is passed over once it has its share of them. Position
    0 has a shelf of its own, as long as its share can get; how many of these count, `kept` decides by what lies on the
    other shelf, so the cap holds at every moment, also while there are few.

    Args:
        total_steps: of the run.
        max_bos_share: largest share at position 0, where the settings leave it open.
    """

    def __init__(
        self, config: SamplesConfig, cache: Cache, n_latents: int, total_steps: int, max_bos_share: float
    ) -> None:
        self.config, self.total_steps = config, total_steps
        self.max_bos_share = max_bos_share if config.max_bos_share is None else config.max_bos_share
        self.collections = 0
        self._cache = cache
        self._rest = _Shelf(n_latents, config.per_latent, config.distinct)
        self._bos = _Shelf(n_latents, share_of(config.per_latent, self.max_bos_share), config.distinct)

    @property
    def n_latents(self) -> int:
        return len(self._rest.score)

    def due(self, step: int) -> bool:
        """Whether the batch of update number `step` is looked at."""
        return step % self.config.every == 0 or step == self.total_steps

    def collect(self, step: int, codes: Codes, rows: Batch) -> None:
        """Look at the codes of one step."""
        self.collections += 1
        found = codes.detach().entries()
        strong = found.value > self.config.threshold
        row, latent, value = (part[strong].cpu().numpy() for part in found)
        bos = (rows.position == 0).cpu().numpy()
        cache_row = rows.row.cpu().numpy()
        key = self.context_keys(cache_row)
        first = bos[row]
        for shelf, mine in ((self._rest, ~first), (self._bos, first)):
            here = row[mine]
            shelf.offer(latent[mine], value[mine].astype(np.float64), cache_row[here], step, key[here])

    def context_keys(self, row: Index) -> NDArray[np.uint64]:
        """A hash of each row's token and the `context` tokens ahead of it in its sequence and document [B]."""
        tokens, doc_id = self._cache.tokens.reshape(-1), self._cache.doc_id.reshape(-1)
        back = np.arange(self.config.context + 1)
        inside = back <= (row % self._cache.ctx)[:, None]
        at = np.where(inside, row[:, None] - back, row[:, None])
        inside &= doc_id[at] == doc_id[row][:, None]
        # A polynomial in an odd number, modulo 2⁶⁴; a token out of the context counts as none.
        factors = np.cumprod(np.full(len(back), 0x9E3779B97F4A7C15, np.uint64))
        spelt = np.where(inside, mix(tokens[at].astype(np.uint64) + np.uint64(1)), np.uint64(0))
        return mix((spelt * factors).sum(axis=1, dtype=np.uint64))

    def window(self, row: int) -> range:
        """Rows of the context of a peak: of one sequence and one document, without padding."""
        ctx, doc_id = self._cache.ctx, self._cache.doc_id.reshape(-1)
        begin = row - row % ctx
        first, stop = max(begin, row - self.config.context), min(begin + ctx, row + self.config.after + 1)
        padding = (self._cache.flags.reshape(-1)[first:stop] & int(Flag.PADDING)) != 0
        inside = (doc_id[first:stop] == doc_id[row]) & ~padding
        outside = np.flatnonzero(~inside) + first
        before, behind = outside[outside < row], outside[outside > row]
        return range(int(before[-1]) + 1 if len(before) else first, int(behind[0]) if len(behind) else stop)

    def kept(self, limit: int | None = None) -> Kept:
        """The samples as they are now: the `limit` strongest of each latent, all of them if None, under the cap."""
        limit = min(limit or self.config.per_latent, self.config.per_latent)
        rest, bos = self._rest, self._bos
        n_rest = (rest.score > 0).sum(axis=1)
        n_bos = np.zeros_like(n_rest)
        for place in range(min(bos.score.shape[1], share_of(limit, self.max_bos_share))):
            score = bos.score[:, place, None]
            ahead = (rest.score >= score).sum(axis=1)
            n_bos += (score[:, 0] > 0) & (ahead + place < limit)
        n_bos = np.minimum(n_bos, beside(n_rest, self.max_bos_share))
        n_rest = np.minimum(n_rest, limit - n_bos)
        places = np.arange(rest.score.shape[1])
        shown = np.hstack([places < n_rest[:, None], places[: bos.score.shape[1]] < n_bos[:, None]])
        value, row, step, key = (np.hstack([getattr(rest, n), getattr(bos, n)]) for n in _Shelf.PARTS)
        value = np.where(shown, value, 0.0)
        order = np.argsort(-value, axis=1, kind="stable")[:, :limit]
        is_bos = shown & (np.arange(shown.shape[1]) >= len(places))
        take = [np.take_along_axis(part, order, axis=1) for part in (value, row, step, key, is_bos)]
        return Kept(take[0].astype(np.float32), take[1], take[2], take[3], take[4])

    # A resumed run

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        found = {"collections": torch.tensor(self.collections)}
        for name, shelf in (("rest", self._rest), ("bos", self._bos)):
            found |= {f"{name}.{part}": tensor for part, tensor in shelf.state().items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.collections = int(state["collections"])
        for name, shelf in (("rest", self._rest), ("bos", self._bos)):
            shelf.load_state({part: state[f"{name}.{part}"] for part in _Shelf.PARTS})


class _Shelf:
    """The K largest entries of each latent: [F, K] each, largest first, score 0 where there are fewer."""

    PARTS = ("score", "row", "step", "key")

    def __init__(self, n_latents: int, k: int, distinct: bool) -> None:
        self.distinct = distinct
        self.score = np.zeros((n_latents, k))
        self.row = np.full((n_latents, k), -1, np.int64)
        self.step = np.zeros((n_latents, k), np.int32)
        self.key = np.zeros((n_latents, k), np.uint64)
        self._slot = np.zeros((n_latents, k), np.int32)  # nothing else is kept by slot

    def offer(self, latent: Index, score: NDArray[np.float64], row: Index, step: int, key: NDArray[np.uint64]) -> None:
        """Show it entries [E], in any order."""
        from ...shared.codes.best import offer

        n_latents, k = self.score.shape
        if not k:
            return
        # What is below the least that is kept cannot enter: after a while that is most of a batch.
        near = score >= self.score[latent, -1]
        order = np.flatnonzero(near)[np.argsort(latent[near], kind="stable")]
        starts = np.zeros(n_latents + 1, np.int64)
        np.cumsum(np.bincount(latent[order], minlength=n_latents), out=starts[1:])
        steps = np.full(len(order), step, np.int32)
        offer(
            starts, score[order], row[order], steps, key[order], self.distinct,
            self.score, self.row, self.step, self.key, self._slot, 0, n_latents,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        return {
            "score": torch.from_numpy(self.score).float(),  # they were float32
            "row": torch.from_numpy(self.row),
            "step": torch.from_numpy(self.step),
            "key": torch.from_numpy(self.key.view(np.int64)),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        own = {name: state[name].cpu().numpy() for name in self.PARTS}
        self.score[...], self.row[...], self.step[...] = own["score"], own["row"], own["step"]
        self.key[...] = own["key"].view(np.uint64)


def share_of(n: int, share: float) -> int:
    """The largest whole number up to share · n."""
    return int(share * n + 1e-9)


def beside(n_rest: Index, share: float) -> Index:
    """How many samples at position 0 may stand beside `n_rest` others: the largest b ≤ share · (b + n_rest)."""
    if share >= 1:
        return np.full_like(n_rest, np.iinfo(np.int64).max)
    most: Index = (share * n_rest / (1 - share) + 1e-9).astype(np.int64)
    return most
