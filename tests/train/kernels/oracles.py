"""What the kernels should compute, in plain float64 torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparse_pipeline.train.kernels.select import Selection


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in float64; NaN anywhere gives NaN."""
    a, b = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((a - b).norm() / b.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()


def selected(pre: Tensor, k: int, over_batch: bool) -> list[list[tuple[int, float]]]:
    """(latent, value) of the selected entries of each row, latents ascending; ties go to the lowest row and latent."""
    positive = pre.double().clamp_min(0)
    mask = torch.zeros_like(positive, dtype=torch.bool)
    if over_batch:
        order = positive.flatten().sort(descending=True, stable=True).indices[: k * len(pre)]
        mask.view(-1)[order] = True
    else:
        mask.scatter_(1, positive.sort(dim=1, descending=True, stable=True).indices[:, :k], True)
    mask &= positive > 0
    return [
        [(int(i), float(row[i])) for i in keep.nonzero().flatten()] for row, keep in zip(positive, mask, strict=True)
    ]


def entries(codes: Selection) -> list[list[tuple[int, float]]]:
    """The same, read from a selection."""
    latent, value = codes.latent.tolist(), codes.value.tolist()
    pairs = zip(codes.start.tolist(), codes.count.tolist(), strict=True)
    return [[(latent[e], value[e]) for e in range(start, start + count)] for start, count in pairs]


def dense(codes: Selection, by_entry: Tensor) -> Tensor:
    """[B, F] float64 from numbers by entry."""
    out = torch.zeros(codes.n_rows, codes.n_latents, dtype=torch.float64)
    for b, (start, count) in enumerate(zip(codes.start.tolist(), codes.count.tolist(), strict=True)):
        out[b, codes.latent[start : start + count].cpu().long()] = by_entry[start : start + count].cpu().double()
    return out
