"""The codes of the last few batches, and which pairs of latents fire together in them.

A window keeps codes, not sums over pairs: n_i, Σz_i, Σz_i², Σz_i z_j and n_ij of every pair that fires together follow
from them when they are asked for, without an F×F matrix. Storing is free (the tensors of a step are kept, not copied);
asking takes about E·k/2 multiply-adds for E entries of rows with k latents.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shared.coders import Codes
from ...shared.codes.moments import CodeMoments


class _Kept(NamedTuple):
    """One batch: values and latents [B, K] as Codes has them, position [B]."""

    values: Tensor
    latents: Tensor
    position: Tensor


@dataclass(frozen=True)
class WindowRows:
    """The active codes of R rows, row after row.

    Attributes:
        indptr: [R + 1] where each row's entries begin.
        latents, values: [E].
        position: [R] in the sequence, 0 at every BOS.
        n_latents: F.
    """

    indptr: NDArray[np.int64]
    latents: NDArray[np.int32]
    values: NDArray[np.float32]
    position: NDArray[np.int32]
    n_latents: int

    def __len__(self) -> int:
        return len(self.position)

    def moments(self, counted: NDArray[np.bool_]) -> CodeMoments:
        """Of the rows with counted [R]."""
        entry = np.repeat(counted, np.diff(self.indptr))
        return CodeMoments.of(self.latents[entry], self.values[entry], int(counted.sum()), self.n_latents)


class CodeWindow:
    """A ring of the codes of at most `batches` steps."""

    def __init__(self, batches: int) -> None:
        self._ring: deque[_Kept] = deque(maxlen=batches)
        self._n_latents = 0

    def __len__(self) -> int:
        return len(self._ring)

    def push(self, codes: Codes, position: Tensor) -> None:
        """Keep the codes of one step, dropping the oldest."""
        latents, values = codes.latents, codes.values.detach()
        if latents is None:
            width = max(int(codes.l0().max()), 1)
            values, latents = values.topk(min(width, codes.n_latents), dim=1)
        self._n_latents = codes.n_latents
        self._ring.append(_Kept(values, latents, position))

    def clear(self) -> None:
        """Forget everything."""
        self._ring.clear()

    def rows(self) -> WindowRows:
        """All active codes, on the host."""
        if not self._ring:
            empty = np.zeros(0, np.int32)
            return WindowRows(np.zeros(1, np.int64), empty, empty.astype(np.float32), empty, self._n_latents)
        counts, latents, values = [], [], []
        for kept in self._ring:
            active = kept.values > 0
            counts.append(active.sum(dim=1))
            whole = bool(counts[-1].sum() == active.numel())  # as it is with TopK nearly always
            latents.append((kept.latents if whole else kept.latents[active]).reshape(-1).to(torch.int32))
            values.append((kept.values if whole else kept.values[active]).reshape(-1).to(torch.float32))
        indptr = torch.cat(counts).cumsum(0).cpu().numpy()
        position = torch.cat([kept.position for kept in self._ring]).to(torch.int32).cpu().numpy()
        flat_latents, flat_values = torch.cat(latents).cpu().numpy(), torch.cat(values).cpu().numpy()
        return WindowRows(np.concatenate([[0], indptr]), flat_latents, flat_values, position, self._n_latents)

    # A resumed run

    def state(self) -> dict[str, Tensor]:
        """Tensors that bring the window back, by name; empty where nothing is kept."""
        found: dict[str, Tensor] = {}
        for number, kept in enumerate(self._ring):
            tensors = {"values": kept.values, "latents": kept.latents.to(torch.int32), "position": kept.position}
            found |= {f"window.{number:04d}.{name}": tensor for name, tensor in tensors.items()}
        if found:
            found["window.n_latents"] = torch.tensor(self._n_latents)
        return found

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take back what `state` gave."""
        self._ring.clear()
        own = {name.removeprefix("window."): value for name, value in state.items() if name.startswith("window.")}
        if not own:
            return
        self._n_latents = int(own.pop("n_latents"))
        numbers = sorted({name.split(".")[0] for name in own})
        for number in numbers:
            values, latents, position = (
                own[f"{number}.{name}"].to(device) for name in ("values", "latents", "position")
            )
            self._ring.append(_Kept(values, latents.to(torch.int64), position))


@dataclass(frozen=True)
class PairScan:
    """Pearson's r of the pairs of latents that fire together.

    Attributes:
        moments: of the rows without position 0.
        i, j, r, both: [P] the pairs i < j with |r| > threshold or a Jaccard index ≥ jaccard, their r and n_ij, without
            position 0.
        with_bos: how many pairs are above the threshold over all rows.
        largest: [F] largest r of each latent; 0 where it has no partner, NaN where it fired too rarely.
        histogram: [BINS] of r from −1 to 1, of all pairs that fire together often enough.
    """

    moments: CodeMoments
    i: NDArray[np.int64]
    j: NDArray[np.int64]
    r: NDArray[np.float64]
    both: NDArray[np.int64]
    with_bos: int
    largest: NDArray[np.float64]
    histogram: NDArray[np.int64]


def scan_pairs(
    rows: WindowRows, threshold: float, min_fired: int, min_both: int, jaccard: float = float("inf")
) -> PairScan:
    """r of all pairs of latents that fire on at least `min_fired` rows each and `min_both` together.

    Exact, in float64. Pairs that never fire together have a small negative r and are not listed.
    """
    from . import pairs as kernels_cpu

    rest = rows.position > 0
    moments = rows.moments(rest)
    everything = moments + rows.moments(~rest)
    arranged: tuple[Any, ...] = kernels_cpu.arrange(rows.indptr, rows.latents, rows.values, rows.n_latents)
    scan: Any = kernels_cpu.scan
    starts = arranged[0]
    threads = torch.get_num_threads()
    # ranges of about as many entries each; several per thread, since low latents have more partners above them
    cuts = np.searchsorted(starts, np.linspace(0, starts[-1], 4 * threads + 1)[1:-1])
    edges = [0, *cuts.tolist(), rows.n_latents]
    ranges = [(begin, end) for begin, end in itertools.pairwise(edges) if begin < end]

    def part(span: tuple[int, int]) -> tuple[Any, ...]:
        capacity = 1 << 12
        while True:
            found: tuple[Any, ...] = scan(
                *arranged, rows.indptr, rest, moments.rows, moments.n, moments.mean, moments.std,
                everything.rows, everything.n, everything.mean, everything.std,
                threshold, jaccard, min_fired, min_both, capacity, *span,
            )  # fmt: skip
            if found[0] <= capacity:
                return found
            capacity = found[0]

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(part, ranges))
    i, j, r, both = (np.concatenate([found[k][: found[0]] for found in parts]) for k in range(2, 6))
    largest = np.max([found[6] for found in parts], axis=0)
    largest[(moments.n < min_fired) | (moments.std <= 0)] = np.nan
    histogram = np.sum([found[7] for found in parts], axis=0)
    return PairScan(moments, i, j, r, both, sum(found[1] for found in parts), largest, histogram)
