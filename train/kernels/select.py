"""Selection without a sort: the k largest pre-activations of each row (TopK) or k·B of the batch (BatchTopK).

A non-negative float orders as its bit pattern does, so a pre-activation becomes an integer key: 15 bits for bfloat16,
31 for float32; negative ones become 0 and are never selected (ReLU). The k-th largest key is found without ordering
anything:

    TopK       Elementwise maxima over slices of the row give a bound: if k of these maxima reach t, so do k entries.
               What reaches the bound (hardly more than k entries) is compacted in latent order; a binary descent over
               the bits of the key finds the k-th largest of those. The bound is never above the k-th largest key, so
               the first stage drops no entry that the second would select; where the candidates do not fit, the second
               stage reads the whole row.
    BatchTopK  The same maxima give a bound on the k·B-th largest key of the batch; what reaches it is counted by key,
               and the exact key follows from the counts.

Ties at the last place go to the lowest latent (TopK), or the lowest row, then the lowest latent (BatchTopK). Both are
exact for any input and use no floating-point atomics, so their result is bit-identical on every run.

Selected entries lie in flat arrays, rows in order, latents ascending within a row: entry e of row b is `start[b] + j`,
0 ≤ j < `count[b]`, with `latent[e]` int32 and `value[e]` float32 > 0.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_COARSE_BITS = 11
_FINE_BITS = 15
_LOW_BITS = 16


@triton.jit
def _keys(pre, offset, mask, SHIFT: tl.constexpr):
    """Bit patterns of the pre-activations as non-negative int32 (SHIFT: 32 − the width of their dtype).

    A set sign bit makes the integer negative, so the maximum with 0 is ReLU. Masked lanes read as key 0 too, and no
    caller selects key 0: every bound is at least 1.
    """
    x = tl.load(pre + offset, mask=mask, other=0.0)
    if SHIFT == 16:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
    else:
        bits = x.to(tl.int32, bitcast=True)
    return tl.maximum(bits, 0)


@triton.jit
def _value(key, SHIFT: tl.constexpr):
    return (key << SHIFT).to(tl.float32, bitcast=True)


@triton.jit
def _kth_key(keys, K: tl.constexpr, BITS: tl.constexpr):
    """The largest key that at least K of `keys` reach (0 if fewer than K are positive).

    Invariant: at least K keys reach `low` (or it is 0), and it has the answer's bits above the one being tried. Each
    bit, from the highest, is kept if K keys still reach the key with it set.
    """
    low = 0
    for i in range(BITS):
        trial = low | (1 << (BITS - 1 - i))
        low = tl.where(tl.sum((keys >= trial).to(tl.int32)) >= K, trial, low)
    return low


@triton.jit
def _slice_maxima(pre, row, F: tl.constexpr, SLOTS: tl.constexpr, SHIFT: tl.constexpr):
    """Maximum keys of the SLOTS strided subsets {s, s + SLOTS, s + 2·SLOTS, …} of a row: [SLOTS]."""
    s = tl.arange(0, SLOTS)
    maxima = tl.zeros([SLOTS], tl.int32)
    for o in tl.range(0, F, SLOTS, loop_unroll_factor=6):
        maxima = tl.maximum(maxima, _keys(pre, row + o + s, o + s < F, SHIFT))
    return maxima


@triton.jit
def _row_candidates(
    pre, cand_latent, cand_count,
    F: tl.constexpr, K: tl.constexpr, CAPACITY: tl.constexpr, SLOTS: tl.constexpr, SHIFT: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """TopK, first half; one program per row. Writes up to CAPACITY candidates, and how many there are.

    The slices of the maxima are disjoint, so K maxima that reach t belong to K different entries. Invariant of the
    loop: `n` candidates lie before slice `o`, in latent order. All are counted, also those that no longer fit, so that
    the second half knows when the list is not whole.
    """
    b = tl.program_id(0).to(tl.int64)
    row = b * F
    bound = tl.maximum(_kth_key(_slice_maxima(pre, row, F, SLOTS, SHIFT), K, BITS), 1)
    s = tl.arange(0, SLOTS)
    n = 0
    key = _keys(pre, row + s, s < F, SHIFT)
    for o in range(0, F, SLOTS):
        ahead = _keys(pre, row + o + SLOTS + s, o + SLOTS + s < F, SHIFT)  # in flight while this slice is placed
        hit = (key >= bound).to(tl.int32)
        place = n + tl.cumsum(hit, 0) - 1
        tl.store(cand_latent + b * CAPACITY + place, o + s, mask=(hit > 0) & (place < CAPACITY))
        n += tl.sum(hit)
        key = ahead
    tl.store(cand_count + b, n)


@triton.jit
def _row_top(
    pre, cand_latent, cand_count, latent, value, count,
    F: tl.constexpr, K: tl.constexpr, CAPACITY: tl.constexpr, SLOTS: tl.constexpr, SHIFT: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """TopK, second half; one program per row: the exact k-th key, and the selected entries in latent order.

    Entries above the k-th key are fewer than K; the free places go to the first entries that equal it, and a running
    count of those (cumsum, `seen`) says which. Candidates lie in latent order, so "first" is the lowest latent on both
    branches, and both select the same entries.
    """
    b = tl.program_id(0).to(tl.int64)
    n = tl.load(cand_count + b)
    row = b * F
    out = b * K
    kept = 0
    if n <= CAPACITY:
        c = tl.arange(0, CAPACITY)
        chosen = tl.load(cand_latent + b * CAPACITY + c, mask=c < n, other=0)
        key = _keys(pre, row + chosen, c < n, SHIFT)
        last = tl.maximum(_kth_key(key, K, BITS), 1)
        ties = K - tl.sum((key > last).to(tl.int32))
        tied = (key == last).to(tl.int32)
        take = ((key > last) | ((tied > 0) & (tl.cumsum(tied, 0) <= ties))).to(tl.int32)
        place = out + tl.cumsum(take, 0) - 1
        tl.store(latent + place, chosen, mask=take > 0)
        tl.store(value + place, _value(key, SHIFT), mask=take > 0)
        kept = tl.sum(take)
    else:
        # More candidates than fit: long runs of equal keys, or hardly any positive ones. Descend over the row itself.
        s = tl.arange(0, SLOTS)
        last = 0
        for i in range(BITS):
            trial = last | (1 << (BITS - 1 - i))
            reach = 0
            for o in range(0, F, SLOTS):
                reach += tl.sum((_keys(pre, row + o + s, o + s < F, SHIFT) >= trial).to(tl.int32))
            last = tl.where(reach >= K, trial, last)
        last = tl.maximum(last, 1)
        above = 0
        for o in range(0, F, SLOTS):
            above += tl.sum((_keys(pre, row + o + s, o + s < F, SHIFT) > last).to(tl.int32))
        ties = K - above
        seen = 0
        for o in range(0, F, SLOTS):
            key = _keys(pre, row + o + s, o + s < F, SHIFT)
            tied = (key == last).to(tl.int32)
            take = ((key > last) | ((tied > 0) & (seen + tl.cumsum(tied, 0) <= ties))).to(tl.int32)
            place = out + kept + tl.cumsum(take, 0) - 1
            tl.store(latent + place, o + s, mask=take > 0)
            tl.store(value + place, _value(key, SHIFT), mask=take > 0)
            seen += tl.sum(tied)
            kept += tl.sum(take)
    tl.store(count + b, kept)
    # Unused places read as inactive: value 0, a latent id in range.
    for o in range(0, K, CAPACITY):
        j = o + tl.arange(0, CAPACITY)
        tl.store(latent + out + j, tl.zeros([CAPACITY], tl.int32), mask=(j >= kept) & (j < K))
        tl.store(value + out + j, tl.zeros([CAPACITY], tl.float32), mask=(j >= kept) & (j < K))


@triton.jit
def _maxima_histogram(
    pre, histogram, F: tl.constexpr, SLOTS: tl.constexpr, SHIFT: tl.constexpr, DROP: tl.constexpr
):  # fmt: skip
    """BatchTopK: counts of the slice maxima by their leading bits; one program per row.

    The bin of the k·B-th largest maximum, rounded down to its first key, is a bound for the whole batch, for the reason
    that holds in a row: k·B maxima are k·B different entries. Adding integers commutes, so the counts are the same in
    whatever order the programs run.
    """
    row = tl.program_id(0).to(tl.int64) * F
    maxima = _slice_maxima(pre, row, F, SLOTS, SHIFT)
    tl.atomic_add(histogram + (maxima >> DROP), 1, mask=maxima > 0, sem="relaxed")


@triton.jit
def _key_histogram(
    pre, bound, prefix, histogram, F: tl.constexpr, SLOTS: tl.constexpr, SHIFT: tl.constexpr, BITS: tl.constexpr,
    LOW: tl.constexpr,
):  # fmt: skip
    """Counts of the keys that reach `bound` by their leading 15 bits, or (LOW) of those that begin with `prefix` by
    their last 16; one program per row."""
    row = tl.program_id(0).to(tl.int64) * F
    least = tl.load(bound)
    begin = tl.load(prefix)
    s = tl.arange(0, SLOTS)
    for o in range(0, F, SLOTS):
        key = _keys(pre, row + o + s, o + s < F, SHIFT)
        if LOW:
            hit = (key >= least) & ((key >> 16) == begin)
            tl.atomic_add(histogram + (key & 0xFFFF), 1, mask=hit, sem="relaxed")
        else:
            tl.atomic_add(histogram + (key >> (BITS - 15)), 1, mask=key >= least, sem="relaxed")


@triton.jit
def _rank_bin(
    histogram, rank_in, key_in, key_out, rank_out, BINS: tl.constexpr, BLOCK: tl.constexpr, LIFT: tl.constexpr,
    DROP: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """The highest bin that `rank_in` counts lie in or above. One program.

    It walks from the highest bin down, BLOCK bins at a time. Invariant: `above` is the sum of the bins passed so far,
    `reached` counts those in which the running sum had reached the rank, `short` is its largest value before that. The
    running sum never falls, so the bins that reach the rank are the lowest ones; the highest is bin `reached − 1`.

    Writes key_out = max((key_in << LIFT | bin) << DROP, LEAST) and rank_out = how many of the bin's own belong to the
    first `rank_in`; both 0 (but LEAST) where there are fewer counts than that.
    """
    rank = tl.load(rank_in)
    i = tl.arange(0, BLOCK)
    above = 0  # counts in higher blocks
    reached = 0  # bins whose count from above reaches the rank
    short = 0  # the largest count from above that does not
    for o in range(0, BINS, BLOCK):
        h = tl.load(histogram + BINS - 1 - o - i)
        upto = above + tl.cumsum(h, 0)
        reached += tl.sum((upto >= rank).to(tl.int32))
        short = tl.maximum(short, tl.max(tl.where(upto < rank, upto, 0), 0))
        above += tl.sum(h)
    found = (above >= rank) & (rank > 0)
    key = (tl.load(key_in) << LIFT) | (reached - 1)
    tl.store(key_out, tl.maximum(tl.where(found, key << DROP, 0), LEAST))
    tl.store(rank_out, tl.where(found, rank - short, 0))


@triton.jit
def _count_rows(pre, last_key, above, tied, F: tl.constexpr, SLOTS: tl.constexpr, SHIFT: tl.constexpr):
    """How many keys of each row lie above the last selected key, and how many equal it; one program per row."""
    b = tl.program_id(0)
    row = b.to(tl.int64) * F
    last = tl.load(last_key)
    s = tl.arange(0, SLOTS)
    more = tl.zeros([SLOTS], tl.int32)
    same = tl.zeros([SLOTS], tl.int32)
    for o in tl.range(0, F, SLOTS, loop_unroll_factor=4):
        key = _keys(pre, row + o + s, o + s < F, SHIFT)
        more += (key > last).to(tl.int32)
        same += (key == last).to(tl.int32)
    tl.store(above + b, tl.sum(more))
    tl.store(tied + b, tl.sum(same))


@triton.jit
def _place_rows(above, tied, ties, start, count, quota, B, BLOCK: tl.constexpr):
    """Where each row's entries begin, and how many of its ties are taken. One program.

    Invariant: before row `o`, `seen` ties have been met and `first` entries placed. A row takes what earlier rows left
    of the `left` free places, at most its own ties.
    """
    left = tl.load(ties)
    i = tl.arange(0, BLOCK)
    first = 0
    seen = 0
    for o in range(0, B, BLOCK):
        m = o + i < B
        t = tl.load(tied + o + i, mask=m, other=0)
        before = seen + tl.cumsum(t, 0) - t
        q = tl.minimum(tl.maximum(left - before, 0), t)
        c = tl.load(above + o + i, mask=m, other=0) + q
        tl.store(quota + o + i, q, mask=m)
        tl.store(count + o + i, c, mask=m)
        tl.store(start + o + i, first + tl.cumsum(c, 0) - c, mask=m)
        seen += tl.sum(t)
        first += tl.sum(c)


@triton.jit
def _write_rows(
    pre, last_key, start, quota, latent, value, F: tl.constexpr, SLOTS: tl.constexpr, SHIFT: tl.constexpr
):  # fmt: skip
    """BatchTopK's entries, in latent order; one program per row.

    Invariant: before slice `o`, `seen` ties of the row have been met, and its next entry goes to `place0`. The slice
    ahead of the last one lies beyond the row: its lanes are masked, and it is never placed.
    """
    b = tl.program_id(0)
    row = b.to(tl.int64) * F
    last = tl.load(last_key)
    ties = tl.load(quota + b)
    place0 = tl.load(start + b)
    s = tl.arange(0, SLOTS)
    seen = 0
    key = _keys(pre, row + s, s < F, SHIFT)
    for o in range(0, F, SLOTS):
        ahead = _keys(pre, row + o + SLOTS + s, o + SLOTS + s < F, SHIFT)  # in flight while this slice is placed
        tied = (key == last).to(tl.int32)
        take = ((key > last) | ((tied > 0) & (seen + tl.cumsum(tied, 0) <= ties))).to(tl.int32)
        place = place0 + tl.cumsum(take, 0) - 1
        tl.store(latent + place, o + s, mask=take > 0)
        tl.store(value + place, _value(key, SHIFT), mask=take > 0)
        seen += tl.sum(tied)
        place0 += tl.sum(take)
        key = ahead


@dataclass(frozen=True)
class Selection:
    """The selected entries of a batch, and the scratch memory of selecting them; allocated once per batch size.

    `latent`, `value` [B·k]: entries, flat. `start`, `count` [B] int32: the entries of each row. `last_key` [1]: the
    last key that BatchTopK selected (0 where fewer than k·B pre-activations are positive).
    """

    k: int
    n_latents: int
    over_batch: bool
    dtype: torch.dtype
    latent: Tensor
    value: Tensor
    start: Tensor
    count: Tensor
    last_key: Tensor
    scratch: dict[str, Tensor]

    @property
    def n_rows(self) -> int:
        return self.start.shape[0]

    @property
    def shift(self) -> int:
        return 16 if self.dtype == torch.bfloat16 else 0

    def smallest_value(self) -> Tensor:
        """The smallest selected value, a float32 scalar on the device; inf where nothing is selected."""
        selected = self.scratch["entry"] < self.count.sum()
        return torch.where(selected, self.value, float("inf")).amin()


def allocate(
    n_rows: int, *, n_latents: int, k: int, dtype: torch.dtype, device: torch.device, over_batch: bool
) -> Selection:
    """Memory for selecting k (TopK), or k on average (`over_batch`, BatchTopK), of `n_latents` for each of `n_rows`.

    Args:
        dtype: of the pre-activations; torch.bfloat16 or torch.float32.
    """
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"pre-activations are selected in bfloat16 or float32, not {dtype}")

    def ints(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int32, device=device)

    if over_batch:
        scratch = {
            "coarse": ints(1 << _COARSE_BITS),
            "fine": ints(1 << _FINE_BITS),
            "low": ints(1 << _LOW_BITS if dtype == torch.float32 else 1),
            "bound": ints(1),
            "rank": torch.full((1,), k * n_rows, dtype=torch.int32, device=device),
            "zero": ints(1),
            "high_key": ints(1),
            "high_rank": ints(1),
            "ties": ints(1),
            "entry": torch.arange(n_rows * k, device=device),
            "above": ints(n_rows),
            "tied": ints(n_rows),
            "quota": ints(n_rows),
            "unused": ints(1),
        }
        start = ints(n_rows)
    else:
        capacity = _capacity(k)
        scratch = {
            "latent": ints(n_rows, capacity),
            "count": ints(n_rows),
        }
        start = torch.arange(0, n_rows * k, k, dtype=torch.int32, device=device)
    value = torch.zeros(n_rows * k, dtype=torch.float32, device=device)
    return Selection(
        k=k,
        n_latents=n_latents,
        over_batch=over_batch,
        dtype=dtype,
        latent=ints(n_rows * k),
        value=value,
        start=start,
        count=ints(n_rows),
        last_key=ints(1),
        scratch=scratch,
    )


def select(pre: Tensor, into: Selection) -> None:
    """Select from pre-activations [B, F] (contiguous, the dtype of `into`) and write the entries into `into`."""
    n_rows, n_latents = pre.shape
    if (n_rows, n_latents, pre.dtype) != (into.n_rows, into.n_latents, into.dtype) or not pre.is_contiguous():
        raise ValueError(
            f"pre-activations {tuple(pre.shape)} of {pre.dtype} do not fit a selection made for "
            f"({into.n_rows}, {into.n_latents}) of {into.dtype}, contiguous"
        )
    if into.over_batch:
        _select_over_batch(pre, into)
    else:
        _select_per_row(pre, into)


def _select_per_row(pre: Tensor, into: Selection) -> None:
    rows, k, shift, scratch = (into.n_rows,), into.k, into.shift, into.scratch
    shared = {
        "F": into.n_latents, "K": k, "CAPACITY": _capacity(k), "SLOTS": _slots(into.n_latents, k), "SHIFT": shift,
        "BITS": 31 - shift,
    }  # fmt: skip
    cand = (scratch["latent"], scratch["count"])
    _row_candidates[rows](pre, *cand, **shared, num_warps=4)
    _row_top[rows](pre, *cand, into.latent, into.value, into.count, **shared, num_warps=1)


def _select_over_batch(pre: Tensor, into: Selection) -> None:
    rows, shift, s = (into.n_rows,), into.shift, into.scratch
    bits = 31 - shift
    shape = {"F": into.n_latents, "SLOTS": _slots(into.n_latents, into.k), "SHIFT": shift}
    for name in ("coarse", "fine", "low"):
        s[name].zero_()
    drop = bits - _COARSE_BITS
    _maxima_histogram[rows](pre, s["coarse"], **shape, DROP=drop, num_warps=4)
    _rank_bin[(1,)](
        s["coarse"], s["rank"], s["zero"], s["bound"], s["unused"],
        BINS=1 << _COARSE_BITS, BLOCK=1 << _COARSE_BITS, LIFT=0, DROP=drop, LEAST=1, num_warps=8,
    )  # fmt: skip
    fine = {"BINS": 1 << _FINE_BITS, "BLOCK": 4096, "LIFT": 0, "DROP": 0, "LEAST": 0, "num_warps": 8}
    _key_histogram[rows](pre, s["bound"], s["zero"], s["fine"], **shape, BITS=bits, LOW=False, num_warps=4)
    if shift:
        _rank_bin[(1,)](s["fine"], s["rank"], s["zero"], into.last_key, s["ties"], **fine)
    else:  # float32: the leading 15 bits, then the other 16
        low = fine | {"BINS": 1 << _LOW_BITS, "LIFT": _LOW_BITS}
        _rank_bin[(1,)](s["fine"], s["rank"], s["zero"], s["high_key"], s["high_rank"], **fine)
        _key_histogram[rows](pre, s["bound"], s["high_key"], s["low"], **shape, BITS=bits, LOW=True, num_warps=4)
        _rank_bin[(1,)](s["low"], s["high_rank"], s["high_key"], into.last_key, s["ties"], **low)
    _count_rows[rows](pre, into.last_key, s["above"], s["tied"], **shape, num_warps=4)
    _place_rows[(1,)](
        s["above"], s["tied"], s["ties"], into.start, into.count, s["quota"], into.n_rows, BLOCK=1024, num_warps=4
    )  # fmt: skip
    _write_rows[rows](pre, into.last_key, into.start, s["quota"], into.latent, into.value, **shape, num_warps=4)


def _capacity(k: int) -> int:
    return max(64, triton.next_power_of_2(2 * k))


def _slots(n_latents: int, k: int) -> int:
    # Four slots per selected latent keep the candidates within a few per cent of k; 1024 keep loads 16 bytes wide.
    return int(min(max(triton.next_power_of_2(4 * k), 1024), triton.next_power_of_2(n_latents)))
