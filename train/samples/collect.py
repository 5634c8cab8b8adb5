"""Keeping the strongest activations of each latent while it trains, with a cap on those at position 0 or massive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shared.cache import Cache
from ...shared.cache.batch import Batch
from ...shared.cache.rows import text_rows
from ...shared.coders import Codes
from .config import SamplesConfig

if TYPE_CHECKING:
    from ...shared.codes.best import Best

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Kept:
    """Samples of every latent, strongest first; value 0 where there are fewer.

    Of equally strong ones the lower row comes first, and one set apart last.

    Attributes:
        value, row, step, key, apart: [F, K]. key: equal for equal contexts. apart: the sample is of no ordinary row: it
            lies at position 0 or on a massive row.
    """

    value: NDArray[np.float32]
    row: Index
    step: NDArray[np.int32]
    key: NDArray[np.uint64]
    apart: NDArray[np.bool_]

    @property
    def count(self) -> Index:
        """Samples of each latent [F]."""
        count: Index = (self.value > 0).sum(axis=1)
        return count

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest sample of each latent on an ordinary row [F]; 0 where it has none."""
        largest: NDArray[np.float32] = np.where(self.apart, np.float32(0), self.value).max(axis=1)
        return largest


class SampleCollector:
    """The largest activations of each latent so far, at most a share of them at position 0 or on massive rows.

    What is kept follows from all activations that were shown, in whatever order they came: of each latent the
    `per_latent` largest with distinct contexts, where rows set apart (position 0, massive rows) are skipped once they
    have their share of them. They have a list of their own, as long as their largest share. `kept` decides by the other
    list how many of these count, so the cap holds at every moment, also while there are few.

    Args:
        total_steps: of the run.
        max_bos_share: largest share of the rows set apart, where the settings leave it open.
        massive: [n_rows] which rows of the cache are massive; None: none is.
    """

    def __init__(
        self,
        config: SamplesConfig,
        cache: Cache,
        n_latents: int,
        total_steps: int,
        max_bos_share: float,
        massive: NDArray[np.bool_] | None = None,
    ) -> None:
        self.config, self.total_steps = config, total_steps
        self.max_bos_share = max_bos_share if config.max_bos_share is None else config.max_bos_share
        self.collections = 0
        self._cache = cache
        self._massive = massive
        from ...shared.codes.best import Best  # numba, which a run without samples need not load

        most_apart = share_of(config.per_latent, self.max_bos_share)
        self._rest = Best(n_latents, config.per_latent, distinct=config.distinct, payload=np.int32)
        self._apart = Best(n_latents, most_apart, distinct=config.distinct, payload=np.int32)

    @property
    def n_latents(self) -> int:
        return len(self._rest.score)

    def due(self, step: int) -> bool:
        """Whether the batch of update number `step` is looked at."""
        return step % self.config.every == 0 or step == self.total_steps

    def collect(self, step: int, codes: Codes, rows: Batch) -> None:
        """Look at the codes of one step."""
        from ...shared.codes.contexts import context_hashes

        self.collections += 1
        found = codes.detach().entries()
        strong = found.value > self.config.threshold
        row, latent, value = (part[strong].cpu().numpy() for part in found)
        apart = (rows.position == 0).cpu().numpy()
        cache_row = rows.row.cpu().numpy()
        if self._massive is not None:
            apart |= self._massive[cache_row]
        tokens, flags = self._cache.tokens.reshape(-1), self._cache.flags.reshape(-1)
        key = context_hashes(tokens, flags, self._cache.ctx, cache_row, self.config.context)
        aside = apart[row]
        for best, mine in ((self._rest, ~aside), (self._apart, aside)):
            here = row[mine]
            best.offer_unsorted(
                latent[mine],
                score=value[mine].astype(np.float64),
                row=cache_row[here],
                payload=np.full(len(here), step, np.int32),
                key=key[here],
            )

    def window(self, row: int) -> range:
        """Rows that show a peak: its context, and what follows it in its sequence and document, without padding."""
        from ...shared.codes.contexts import context_start

        cache, flags, doc_id = self._cache, self._cache.flags.reshape(-1), self._cache.doc_id.reshape(-1)
        stop = min(row - row % cache.ctx + cache.ctx, row + self.config.after + 1)
        inside = text_rows(flags[row:stop]) & (doc_id[row:stop] == doc_id[row])
        outside = np.flatnonzero(~inside[1:])
        length = 1 + int(outside[0]) if len(outside) else stop - row
        return range(context_start(flags, cache.ctx, row, self.config.context), row + length)

    def kept(self, limit: int | None = None) -> Kept:
        """The samples as they are now: the `limit` strongest of each latent, all of them if None, under the cap."""
        limit = min(limit or self.config.per_latent, self.config.per_latent)
        rest, apart = self._rest, self._apart
        n_rest = rest.kept
        n_apart = np.zeros_like(n_rest)
        for place in range(min(apart.score.shape[1], share_of(limit, self.max_bos_share))):
            score = apart.score[:, place, None]
            ahead = (rest.score >= score).sum(axis=1)
            n_apart += (score[:, 0] > 0) & (ahead + place < limit)
        n_apart = np.minimum(n_apart, beside(n_rest, self.max_bos_share))
        n_rest = np.minimum(n_rest, limit - n_apart)
        places = np.arange(rest.score.shape[1])
        shown = np.hstack([places < n_rest[:, None], places[: apart.score.shape[1]] < n_apart[:, None]])
        parts = ((best.score, best.row, best.payload, best.key) for best in (rest, apart))
        value, row, step, key = (np.hstack(pair) for pair in zip(*parts, strict=True))
        value = np.where(shown, value, 0.0)
        order = np.argsort(-value, axis=1, kind="stable")[:, :limit]
        is_apart = shown & (np.arange(shown.shape[1]) >= len(places))
        take = [np.take_along_axis(part, order, axis=1) for part in (value, row, step, key, is_apart)]
        return Kept(take[0].astype(np.float32), take[1], take[2], take[3], take[4])

    # A resumed run

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint keeps."""
        found = {"collections": torch.tensor(self.collections)}
        for name, best in (("rest", self._rest), ("apart", self._apart)):
            found |= {f"{name}.{part}": tensor for part, tensor in _tensors(best).items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.collections = int(state["collections"])
        _restore(self._rest, state, "rest")
        _restore(self._apart, state, "apart")


def _tensors(best: Best) -> dict[str, Tensor]:
    """What a checkpoint keeps of a list."""
    return {
        "score": torch.from_numpy(best.score).float(),  # exact: activations are float32
        "row": torch.from_numpy(best.row),
        "step": torch.from_numpy(best.payload),
        "key": torch.from_numpy(best.key.view(np.int64)),
    }


def _restore(best: Best, state: Mapping[str, Tensor], prefix: str) -> None:
    score, row, step, key = (state[f"{prefix}.{part}"].cpu().numpy() for part in ("score", "row", "step", "key"))
    best.score[...], best.row[...], best.payload[...], best.key[...] = score, row, step, key.view(np.uint64)


def share_of(n: int, share: float) -> int:
    """The largest whole number up to share · n."""
    return int(share * n + 1e-9)


def beside(n_rest: Index, share: float) -> Index:
    """How many samples set apart may stand beside `n_rest` others: the largest b ≤ share · (b + n_rest)."""
    if share >= 1:
        return np.full_like(n_rest, np.iinfo(np.int64).max)
    most: Index = (share * n_rest / (1 - share) + 1e-9).astype(np.int64)
    return most
