"""Sums over one batch behind r of some pairs of latents, and the gradient of r to the batch's codes.

Two forms with the same numbers: `firings` touches the codes of these latents alone, and its sizes follow from them;
`columns` forms a matrix, whose size the host knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...shared.coders import Codes

PIECE_NUMBERS = 1 << 26
"""Numbers of one intermediate matrix on a device."""


@dataclass(frozen=True)
class PairIds:
    """P nominated pairs of m latents: ids [m] ascending, left and right [P] places in `ids`."""

    ids: Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class TrackedSums:
    """Over rows excluding position 0: how many, []; Σ z and Σ z² of each latent, [m]; Σ z_i z_j of each pair, [P]."""

    rows: Tensor
    total: Tensor
    square: Tensor
    cross: Tensor

    def __add__(self, other: TrackedSums) -> TrackedSums:
        return TrackedSums(
            self.rows + other.rows, self.total + other.total, self.square + other.square, self.cross + other.cross
        )

    def scaled(self, factor: float) -> TrackedSums:
        """Every sum times the factor."""
        return TrackedSums(self.rows * factor, self.total * factor, self.square * factor, self.cross * factor)

    def mean(self) -> Tensor:
        """Of each latent, [m]."""
        return self.total / self.rows.clamp_min(1)

    def scale(self) -> Tensor:
        """1 / √(rows · variance) of each latent, [m]; rows · variance = Σ z² − (Σ z)² / rows."""
        return (self.square - self.total * self.mean()).clamp_min(1e-12).rsqrt()

    def r(self, pairs: PairIds) -> Tensor:
        """Pearson's r of each pair, [P]; 0 where a latent is silent."""
        left, right, scale = pairs.left, pairs.right, self.scale()
        return (self.cross - self.total[left] * self.mean()[right]) * scale[left] * scale[right]


@dataclass(frozen=True)
class Firings:
    """The E active codes of the m latents on one batch's counted rows, and the Q times that a pair fired together.

    Attributes:
        sums: over the batch.
        place: the place of each entry in `Codes.values`, two indices of [E]. which, value: [E] its latent as a place in
            `PairIds.ids`, and the code.
        pair: [Q] which pair. mine, theirs: [Q] the entries of its left and its right latent.
    """

    sums: TrackedSums
    place: tuple[Tensor, Tensor]
    which: Tensor
    value: Tensor
    pair: Tensor
    mine: Tensor
    theirs: Tensor

    def gradient(
        self, sums: TrackedSums, pairs: PairIds, r: Tensor, pull: Tensor, moved: tuple[Tensor, Tensor], *, like: Tensor
    ) -> Tensor:
        """Σ_p pull_p · ∂r_p/∂z, in the shape of the codes' values.

        With s = 1/√(rows · variance): ∂r/∂z_i = s_i s_j (z_j − mean_j) − r s_i² (z_i − mean_i) on every row; only the
        rows where i fires have a code to receive it. Summed over the pairs of latent i, it splits into

            on every entry of i        slope_i (mean_i − z_i) − offset_i,  slope_i = s_i² Σ_p pull_p r_p,
                                       offset_i = Σ_p pull_p s_i s_j mean_j
            where j fires on the row   + Σ_p pull_p s_i s_j z_j

        so a pair is visited only on rows where both fire. Autograd gives the same gradient in twice the time, spent on
        many small operations.

        Args:
            sums: the sums that r was computed from.
            pairs: the pairs.
            r: [P].
            pull: [P] derivative of the penalty by r.
            moved: [P] each, factors of what the left and the right latent of a pair receive.
            like: [B, K] the codes' values.
        """
        (joint_left, joint_right), (offset, slope) = _factors(sums, pairs, r, pull, moved)
        per_entry = (slope * sums.mean() - offset)[self.which] - slope[self.which] * self.value
        per_entry.index_add_(0, self.mine, joint_left[self.pair] * self.value[self.theirs])
        per_entry.index_add_(0, self.theirs, joint_right[self.pair] * self.value[self.mine])
        return torch.zeros_like(like).index_put_(self.place, per_entry)


def _factors(
    sums: TrackedSums, pairs: PairIds, r: Tensor, pull: Tensor, moved: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of `Firings.gradient`: (pull_p s_i s_j for the left and for the right latent, [P] each), (offset, slope, [m])."""
    left, right, mean, scale = pairs.left, pairs.right, sums.mean(), sums.scale()
    joint, own = pull * scale[left] * scale[right], pull * r
    (joint_left, own_left), (joint_right, own_right) = ((joint * factor, own * factor) for factor in moved)
    nothing = torch.zeros_like(mean)
    offset = nothing.index_add(0, left, joint_left * mean[right]).index_add_(0, right, joint_right * mean[left])
    slope = nothing.index_add(0, left, own_left).index_add_(0, right, own_right) * scale * scale
    return (joint_left, joint_right), (offset, slope)


def firings(codes: Codes, rest: Tensor, pairs: PairIds) -> Firings:
    """The active codes of the pairs' latents in one batch.

    Only the entries of these latents are touched, about B·k/F rows of each: a tenth of the time of the same sums over
    dense columns.

    A pair's joint firings are found by walking its left latent's entries and looking up the right latent on the same
    row in `at`. `order` groups entries by latent; entry number q of pair p is order[begin[left_p] + (q − entries of
    earlier pairs)], which the arange over all pairs computes at once.

    Args:
        codes: of B rows.
        rest: [B] bool, the rows that count: those excluding position 0.
    """
    m = len(pairs.ids)
    place, which, value = _entries(codes, pairs.ids, rest)
    row = place[0]
    total = value.new_zeros(m).index_add_(0, which, value)
    square = value.new_zeros(m).index_add_(0, which, value * value)
    # at[b, i]: the entry of latent i on row b; −1: none
    at = torch.full((len(rest), m), -1, dtype=torch.int32, device=value.device)
    at[row, which] = torch.arange(len(row), dtype=torch.int32, device=value.device)
    order = torch.argsort(which, stable=True)
    count = torch.bincount(which, minlength=m)
    begin = count.cumsum(0) - count
    # for every pair, each entry of its left latent, and the right latent's entry on the same row
    per_pair = count[pairs.left]
    pair = torch.repeat_interleave(per_pair)
    # begin of the left latent's entries in `order`, less the entries of earlier pairs
    first = begin[pairs.left] - (per_pair.cumsum(0) - per_pair)
    mine = order[first[pair] + torch.arange(len(pair), device=value.device)]
    theirs = at[row[mine], pairs.right[pair]]
    together = theirs >= 0
    pair, mine, theirs = pair[together], mine[together], theirs[together].to(torch.int64)
    cross = value.new_zeros(len(per_pair)).index_add_(0, pair, value[mine] * value[theirs])
    return Firings(TrackedSums(rest.sum().to(value), total, square, cross), place, which, value, pair, mine, theirs)


@dataclass(frozen=True)
class Columns:
    """What `Firings` holds, as a matrix: no size depends on a code, so a device computes it while its host runs ahead.

    It takes about ten times the arithmetic of `Firings`, which a GPU does in less time than one reading of a size.

    Attributes:
        sums: over the batch. codes: the batch's.
        z: [B, m] codes of the m latents, 0 on rows that do not count.
    """

    sums: TrackedSums
    codes: Codes
    z: Tensor

    def gradient(
        self, sums: TrackedSums, pairs: PairIds, r: Tensor, pull: Tensor, moved: tuple[Tensor, Tensor], *, like: Tensor
    ) -> Tensor:
        """As `Firings.gradient`. On CUDA its last bits may differ between runs: the pairs of one latent are added up in
        no fixed order."""
        z, codes = self.z, self.codes
        (joint_left, joint_right), (offset, slope) = _factors(sums, pairs, r, pull, moved)
        whole = slope * sums.mean() - offset - slope * z
        for some in _pieces(len(pairs.left), len(z)):
            left, right = pairs.left[some], pairs.right[some]
            whole.index_add_(1, left, joint_left[some] * z[:, right])
            whole.index_add_(1, right, joint_right[some] * z[:, left])
        whole = torch.where(z > 0, whole, 0.0)
        if codes.latents is None:
            return torch.zeros_like(like).index_copy_(1, pairs.ids, whole)
        with_none = torch.nn.functional.pad(whole, (0, 1))  # one column more, of the latents in no pair
        return torch.where(codes.values > 0, with_none.gather(1, _places(codes, pairs.ids)), 0.0)


def columns(codes: Codes, rest: Tensor, pairs: PairIds) -> Columns:
    """As `firings`, without waiting for the device."""
    z = codes.columns(pairs.ids) * rest.unsqueeze(1)
    parts = _pieces(len(pairs.left), len(z))
    cross = torch.cat([(z[:, pairs.left[some]] * z[:, pairs.right[some]]).sum(dim=0) for some in parts])
    return Columns(TrackedSums(rest.sum().to(z), z.sum(dim=0), z.square().sum(dim=0), cross), codes, z)


def _pieces(n_pairs: int, n_rows: int) -> list[slice]:
    """The pairs in pieces whose codes on all rows fit PIECE_NUMBERS."""
    step = max(1, PIECE_NUMBERS // max(1, n_rows))
    return [slice(start, start + step) for start in range(0, n_pairs, step)]


def _places(codes: Codes, ids: Tensor) -> Tensor:
    """The place in `ids` [m] of the latent of each slot [B, K]; m: it is not among them."""
    assert codes.latents is not None
    place = torch.full((codes.n_latents,), len(ids), device=ids.device)
    place[ids] = torch.arange(len(ids), device=ids.device)
    return place[codes.latents]


def _entries(codes: Codes, ids: Tensor, counted: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """(place in the codes' values, place in ids, value) of the active codes of some latents on the counted rows."""
    if codes.latents is None:
        values = codes.values[:, ids]
        row, which = ((values > 0) & counted[:, None]).nonzero(as_tuple=True)
        return (row, ids[which]), which, values[row, which]
    which = _places(codes, ids)
    row, slot = ((which < len(ids)) & (codes.values > 0) & counted[:, None]).nonzero(as_tuple=True)
    return (row, slot), which[row, slot], codes.values[row, slot]
