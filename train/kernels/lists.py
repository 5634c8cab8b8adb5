"""Per-latent lists: which rows each latent fired on, in row order, from a selection in row order. No sort.

A bit per (latent, row) marks the firings; setting bits is independent of the order in which programs run, so the lists
are the same on every run. A running count of the bits gives each latent its number of firings and each entry its rank
among them; a cumulative sum over latents turns ranks into places.

Long lists (latents that fire on a large share of the batch) are cut into segments that are summed by programs of their
own; without that, one program would walk the whole batch while the others have long finished.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .select import Selection

SEGMENT = 128
"""Entries of a segment: enough to keep a program busy, few enough that the longest list has many."""


@triton.jit
def _popcount(x):
    """Set bits of each int32: sums within 2, 4 and 8 bits side by side, then of the four bytes by one product.

    Bit 31 makes a word negative and `>>` copies the sign; every mask cuts the copies off again.
    """
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24) & 0xFF


@triton.jit
def _mark(latent, start, count, bits, WORDS: tl.constexpr, K: tl.constexpr):
    """Set the bit of every entry; one program per row.

    32 rows share a word, so programs meet there: `or` commutes, and no (latent, row) occurs twice. No order between
    programs is needed before the kernel ends, so the atomics are relaxed.
    """
    b = tl.program_id(0)
    e0 = tl.load(start + b)
    n = tl.load(count + b)
    k = tl.arange(0, K)
    for j in range(0, n, K):
        lat = tl.load(latent + e0 + j + k, mask=j + k < n, other=0).to(tl.int64)
        tl.atomic_or(bits + lat * WORDS + b // 32, 1 << (b % 32), mask=j + k < n, sem="relaxed")


@triton.jit
def _rank(bits, before, fired, segments, F, WORDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
          SEGMENT: tl.constexpr):  # fmt: skip
    """Firings before each word of a latent's bits, and in all of them; one program per ROWS latents.

    Invariant: before the block of words at `o`, `total` holds each latent's firings in the words before it. Words and
    latents beyond the end load as 0 and count nothing.
    """
    f = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.int32)
    for o in range(0, WORDS, BLOCK):
        i = o + tl.arange(0, BLOCK)
        at = f[:, None].to(tl.int64) * WORDS + i[None, :]
        m = (f < F)[:, None] & (i < WORDS)[None, :]
        c = _popcount(tl.load(bits + at, mask=m, other=0))
        tl.store(before + at, total[:, None] + tl.cumsum(c, axis=1) - c, mask=m)
        total += tl.sum(c, axis=1)
    tl.store(fired + f, total, mask=f < F)
    tl.store(segments + f, total // SEGMENT, mask=f < F)


@triton.jit
def _place(latent, value, start, count, bits, before, first, row, entry, code, WORDS: tl.constexpr, K: tl.constexpr):
    """Write every entry to its place in its latent's list; one program per row.

    The place is first[latent] + its firings on earlier rows: those in earlier words (`before`), and in this word the
    bits below this row's own. Different entries get different places, so no two programs write to one.
    """
    b = tl.program_id(0)
    e0 = tl.load(start + b)
    n = tl.load(count + b)
    k = tl.arange(0, K)
    for j in range(0, n, K):
        m = j + k < n
        lat = tl.load(latent + e0 + j + k, mask=m, other=0)
        word = lat.to(tl.int64) * WORDS + b // 32
        here = tl.load(bits + word, mask=m, other=0) & ((1 << (b % 32)) - 1)
        place = tl.load(first + lat, mask=m, other=0) + tl.load(before + word, mask=m, other=0) + _popcount(here)
        tl.store(row + place, tl.zeros([K], tl.int32) + b, mask=m)
        tl.store(entry + place, e0 + j + k, mask=m)
        tl.store(code + place, tl.load(value + e0 + j + k, mask=m, other=0.0), mask=m)


@dataclass(frozen=True)
class LatentLists:
    """For each latent the entries that belong to it, rows ascending; allocated once per batch size.

    Latent f owns list places first[f] … first[f + 1] − 1. The first (segment[f + 1] − segment[f])·segment_length of
    them form its segments; the rest, fewer than a segment, are summed with the row itself.
    """

    first: Tensor
    """[F + 1] int32."""
    segment: Tensor
    """[F + 1] int32."""
    row: Tensor
    """[B·k] int32: the row of the entry at each place."""
    entry: Tensor
    """[B·k] int32: its number in the selection."""
    code: Tensor
    """[B·k] float32: its value."""
    fired: Tensor
    """[F] int32: on how many rows each latent fired."""
    segment_length: int
    """Entries of a segment."""
    scratch: dict[str, Tensor]

    @property
    def max_segments(self) -> int:
        """Segments that there can be at most."""
        return self.row.shape[0] // self.segment_length


def allocate(codes: Selection, segment_length: int = SEGMENT) -> LatentLists:
    """Memory for the lists of one selection.

    Args:
        segment_length: entries of a segment, a power of two.
    """
    n_latents, n_entries, device = codes.n_latents, codes.latent.shape[0], codes.latent.device

    def ints(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int32, device=device)

    words = triton.cdiv(codes.n_rows, 32)
    scratch = {
        "bits": ints(n_latents, words),
        "before": ints(n_latents, words),
        "segments": ints(n_latents),
    }
    return LatentLists(
        first=ints(n_latents + 1),
        segment=ints(n_latents + 1),
        row=ints(n_entries),
        entry=ints(n_entries),
        code=torch.zeros(n_entries, dtype=torch.float32, device=device),
        fired=ints(n_latents),
        segment_length=segment_length,
        scratch=scratch,
    )


def build_lists(codes: Selection, into: LatentLists) -> None:
    """Fill the lists from the selected entries."""
    bits, before = into.scratch["bits"], into.scratch["before"]
    n_latents, words = bits.shape
    block_k = min(128, triton.next_power_of_2(codes.k))
    bits.zero_()
    _mark[(codes.n_rows,)](codes.latent, codes.start, codes.count, bits, WORDS=words, K=block_k, num_warps=1)
    block_w = min(128, triton.next_power_of_2(words))
    rows = max(1, 1024 // block_w)
    _rank[(triton.cdiv(n_latents, rows),)](
        bits, before, into.fired, into.scratch["segments"], n_latents,
        WORDS=words, ROWS=rows, BLOCK=block_w, SEGMENT=into.segment_length, num_warps=4,
    )  # fmt: skip
    torch.cumsum(into.fired, 0, dtype=torch.int32, out=into.first[1:])
    torch.cumsum(into.scratch["segments"], 0, dtype=torch.int32, out=into.segment[1:])
    _place[(codes.n_rows,)](
        codes.latent, codes.value, codes.start, codes.count, bits, before, into.first, into.row, into.entry, into.code,
        WORDS=words, K=block_k, num_warps=1,
    )  # fmt: skip
