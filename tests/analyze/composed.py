"""Decoder rows that are sums of a few shared directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def composed_rows(n: int, d: int, parts: int, each: int = 3, seed: int = 0) -> Tensor:
    """n rows [n, d] of length 1, each the sum of `each` of `parts` random directions with weights from ½ to 1½."""
    generator = torch.Generator().manual_seed(seed)
    shared = normalize(torch.randn(parts, d, generator=generator), dim=1)
    chosen = torch.stack([torch.randperm(parts, generator=generator)[:each] for _ in range(n)])
    weights = torch.rand(n, each, 1, generator=generator) + 0.5
    return normalize((shared[chosen] * weights).sum(dim=1), dim=1)
