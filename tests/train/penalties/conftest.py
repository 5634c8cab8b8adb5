"""Small random codes, rows and decoders in float64, and what every penalty must be true to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.coders import Coder, Codes, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.penalties import Penalty, StepBatch

CTX = 8


def rows_at(position: Tensor) -> Batch:
    zeros = torch.zeros_like(position)
    return Batch({}, zeros, position, zeros, zeros, zeros, zeros)


def step_batch(position: Tensor, *, step: int = 1, total: int = 10, ctx: int = CTX, seed: int = 0) -> StepBatch:
    """Rows at these positions; no penalty reads the activations themselves."""
    nothing = torch.zeros(len(position), 1)
    generator = torch.Generator().manual_seed(seed)
    return StepBatch(nothing, nothing, rows_at(position), step, total, generator, ctx)


def coder_with(w_dec: Tensor, k: int = 2) -> Coder:
    """A transcoder with exactly this decoder tensor, graph and all."""
    coder = build_coder(TopKConfig(latents=len(w_dec), k=min(k, len(w_dec))), 3, w_dec.shape[1], tied=False).double()
    coder._parameters["w_dec"] = w_dec  # type: ignore[assignment]
    return coder


@dataclass
class Case:
    """40 rows of 4 of 9 latents, position 0 every 8th row; some slots inactive."""

    values: Tensor
    latents: Tensor
    w_dec: Tensor
    position: Tensor

    def codes(self, dense: bool = False) -> Codes:
        codes = Codes(self.values, self.latents, len(self.w_dec))
        return Codes(codes.dense(), None, len(self.w_dec)) if dense else codes

    def value(self, penalty: Penalty, dense: bool = False, step: int = 1, seed: int = 0) -> Tensor:
        batch = step_batch(self.position, step=step, seed=seed)
        return penalty(batch, coder_with(self.w_dec), self.codes(dense))

    def permuted(self, order: Tensor) -> Case:
        """The same with latent order[i] renamed i."""
        new_name = torch.empty_like(order)
        new_name[order] = torch.arange(len(order))
        return Case(self.values, new_name[self.latents], self.w_dec[order], self.position)


@pytest.fixture
def case() -> Case:
    return make_case()


def make_case(seed: int = 0, n_rows: int = 40, n_latents: int = 9, k: int = 4, width: int = 6) -> Case:
    g = torch.Generator().manual_seed(seed)
    latents = torch.stack([torch.randperm(n_latents, generator=g)[:k] for _ in range(n_rows)])
    values = torch.rand(n_rows, k, generator=g, dtype=torch.float64) + 0.2
    values[torch.rand(n_rows, k, generator=g) < 0.15] = 0
    w_dec = torch.randn(n_latents, width, generator=g, dtype=torch.float64)
    return Case(values, latents, w_dec, torch.arange(n_rows) % CTX)


def gradcheck(case: Case, make: Callable[[], Penalty], *, step: int = 1, dense: bool = False) -> bool:
    """Finite differences with respect to the active codes and the decoder."""
    active = case.values > 0

    def value(free: Tensor, w_dec: Tensor) -> Tensor:
        values = torch.zeros_like(case.values).masked_scatter(active, free)
        return Case(values, case.latents, w_dec, case.position).value(make(), dense, step)

    inputs = case.values[active].clone().requires_grad_(), case.w_dec.clone().requires_grad_()
    return bool(torch.autograd.gradcheck(value, inputs))


def minimise(parameter: Tensor, loss: Callable[[], Tensor], steps: int = 300, lr: float = 0.05) -> None:
    optimizer = torch.optim.Adam([parameter], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
