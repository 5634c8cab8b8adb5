"""Sparsity with a target: penalties and gradients written out in float64, the controller's rule, nested JumpReLU."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_pipeline.shared.coders import ARCHITECTURES, Coder, CoderConfig
from sparse_pipeline.shared.coders.configs.base import StepContext
from sparse_pipeline.shared.coders.jumprelu import JumpReLU, JumpReLUConfig
from sparse_pipeline.shared.coders.matryoshka_jumprelu import MatryoshkaJumpReLU, MatryoshkaJumpReLUConfig
from sparse_pipeline.shared.coders.relu import ReLUConfig
from sparse_pipeline.shared.coders.sparsity import PenalisedCoder
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError
from tests.shared.coders.test_coders import make, rows

Array = NDArray[np.float64]
COUNTED = torch.tensor([False, True, True, True, False, True, True, True, True])
EPSILON = 0.5


def jump(config: CoderConfig, tied: bool = False) -> JumpReLU:
    coder = make(config, tied)
    assert isinstance(coder, JumpReLU)
    with torch.no_grad():
        coder.log_threshold.copy_(torch.linspace(-1.4, -0.4, 13, dtype=torch.float64))
    coder.begin_step(StepContext(0, 1, 100, COUNTED))
    return coder


def parts(coder: JumpReLU, u: Tensor) -> tuple[Array, Array, Array]:
    """(π, θ, which π lie in the window)"""
    pre = u.numpy() @ coder.w_enc.detach().numpy().T + coder.b_enc.detach().numpy()
    theta = np.exp(coder.log_threshold.detach().numpy())
    return pre, theta, np.abs((pre - theta) / EPSILON) < 0.5


def test_the_squared_distance_and_the_dense_penalty_with_their_straight_through_gradients() -> None:
    """Over the rows outside position 0 alone."""
    config = JumpReLUConfig(
        latents=13, l0_target=2.0, l0_coef=0.3, bandwidth=EPSILON, max_frequency=0.25, frequency_coef=3.0
    )
    coder = jump(config)
    u, t = rows(coder)
    pre, theta, inside = parts(coder, u)
    p = (pre > theta)[COUNTED].mean(axis=0)
    assert (p > 0.25).sum() > 2
    distance, above = p.sum() - 2.0, np.maximum(p - 0.25, 0)
    terms = coder.losses(u, t, coder.encode_normalised(u))
    assert terms["sparsity"].item() == pytest.approx(0.3 * (2 / 2.0) * distance**2, rel=1e-12)
    assert terms["dense"].item() == pytest.approx(3 * (above**2).sum(), rel=1e-12)
    by_p = {"sparsity": 0.3 * (2 / 2.0) * 2 * distance * np.ones(13), "dense": 3 * 2 * above}
    dp = -inside[COUNTED].mean(axis=0) / EPSILON * theta  # by log θ
    for name, outer in by_p.items():
        coder.zero_grad()
        coder.losses(u, t, coder.encode_normalised(u))[name].backward()
        assert coder.log_threshold.grad is not None
        np.testing.assert_allclose(coder.log_threshold.grad, outer * dp, rtol=1e-10, atol=1e-14)
        assert coder.w_enc.grad is None


def test_tanh_quadratic_and_its_gradients() -> None:
    """By the thresholds' straight-through rule and, for everything else, by finite differences."""
    config = JumpReLUConfig(
        latents=13, penalty="tanh_quadratic", l0_coef=0.3, bandwidth=EPSILON, tanh_scale=1.5, tanh_share=0.2,
        decoder_norm="free",
    )  # fmt: skip
    coder = jump(config)
    u, t = rows(coder)
    pre, theta, inside = parts(coder, u)
    norms = np.linalg.norm(coder.w_dec.detach().numpy(), axis=1)
    z = np.where(pre > theta, pre, 0)
    p = np.tanh(1.5 * z * norms)[COUNTED].mean(axis=0)
    term = coder.losses(u, t, coder.encode_normalised(u))["sparsity"]
    assert term.item() == pytest.approx(0.3 * (p * (1 + p / 0.2)).sum(), rel=1e-12)
    term.backward()
    by_p = 0.3 * (1 + 2 * p / 0.2)
    slope = 1.5 * norms * (1 - np.tanh(1.5 * z * norms) ** 2) / COUNTED.sum().item()
    by_theta = -(theta / EPSILON) * ((by_p * slope) * inside)[COUNTED].sum(axis=0)
    assert coder.log_threshold.grad is not None
    np.testing.assert_allclose(coder.log_threshold.grad, by_theta * theta, rtol=1e-10, atol=1e-14)
    check_gradients(coder, u, t, "sparsity", ("w_enc", "b_enc", "w_dec"))


def check_gradients(coder: Coder, u: Tensor, t: Tensor, term: str, names: tuple[str, ...]) -> None:
    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coder = coder

        def forward(self) -> Tensor:
            return coder.losses(u, t, coder.encode_normalised(u))[term]

    def loss(*values: Tensor) -> Tensor:
        return torch.func.functional_call(Loss(), {f"coder.{n}": v for n, v in zip(names, values, strict=True)}, ())

    leaves = tuple(getattr(coder, name).detach().clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(loss, leaves, eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("prefixes", ["fixed", "random"])
@pytest.mark.parametrize("tied", [True, False])
def test_nested_jumprelu_is_the_mean_over_prefixes(prefixes: Any, tied: bool) -> None:
    groups = (2, 4, 7) if prefixes == "fixed" else None
    config = MatryoshkaJumpReLUConfig(
        latents=13, prefixes=prefixes, groups=groups, n_prefixes=4, bandwidth=EPSILON, skip=not tied
    )
    coder = jump(config, tied)
    assert isinstance(coder, MatryoshkaJumpReLU)
    u, t = rows(coder)
    pre, theta, _ = parts(coder, u)
    z, w = np.where(pre > theta, pre, 0), coder.w_dec.detach().numpy()
    base = coder.offset(u).detach().numpy() - t.numpy()
    lengths = (2, 6, 13) if prefixes == "fixed" else coder.prefixes
    assert len(lengths) == (3 if prefixes == "fixed" else 4)
    expected = np.mean([((base + z[:, :m] @ w[:m]) ** 2).mean() for m in lengths])
    terms = coder.losses(u, t, coder.encode_normalised(u))
    assert terms["reconstruction"].item() == pytest.approx(expected, rel=1e-12)
    assert terms["sparsity"].item() == pytest.approx(1e-3 * (z > 0).sum(1).mean(), rel=1e-12)
    check_gradients(coder, u, t, "reconstruction", ("w_enc", "b_enc", "w_dec", "b_dec"))
    with torch.no_grad():
        whole = coder.decode_normalised(coder.encode_normalised(u), u).numpy() - t.numpy()
    np.testing.assert_allclose(whole, base + z @ w, atol=1e-12)


def test_the_weight_follows_the_rule() -> None:
    """c ← c + 0.5 (e − e₋₁) + 0.05 e and b ← b − 0.02 e, e = log(L0/target) at most 1 in size, of the counted rows."""
    coder = make(ReLUConfig(latents=13, l0_target=2.5, l1_coef=0.3, sparsity_warmup=4))
    assert isinstance(coder, PenalisedCoder)
    u, t = rows(coder)
    plain = make(ReLUConfig(latents=13, l1_coef=0.3))
    bias = coder.b_enc.detach().clone()
    c, before = 0.0, None
    for step, scale in enumerate((1.0, 0.7, 0.2, -1.0, 1.5), 1):
        coder.begin_step(StepContext(0, step, 100, COUNTED))
        codes = coder.encode_normalised(u)
        unweighted = plain.losses(u, t, codes)["sparsity"].item()
        assert coder.losses(u, t, codes)["sparsity"].item() == pytest.approx(
            min(step / 4, 1) * math.exp(c) * unweighted, rel=1e-6
        )
        codes = coder.encode_normalised(u * scale)
        l0 = (codes.dense()[COUNTED] > 0).sum(dim=1).double().mean().item()
        error = min(max(math.log(l0 / 2.5), -1), 1)
        c += 0.05 * error + (0 if before is None else 0.5 * (error - before))
        before = error
        bias = bias - 0.02 * error
        coder.after_step(codes)
        torch.testing.assert_close(coder.b_enc.detach(), bias, rtol=1e-6, atol=1e-6)
    assert float(coder.log_pressure) == pytest.approx(c, rel=1e-6)
    frozen = make(ReLUConfig(latents=13, l0_target=2.5))
    frozen.b_enc.requires_grad_(False)
    frozen.after_step(frozen.encode_normalised(u))
    torch.testing.assert_close(frozen.b_enc, make(frozen.config).b_enc)


def test_a_threshold_takes_the_place_of_the_bias() -> None:
    coder = jump(JumpReLUConfig(latents=13, l0_target=2.0, penalty="tanh_quadratic"))
    before = coder.log_threshold.detach().clone()
    codes = coder.encode_normalised(rows(coder)[0])
    coder.after_step(codes)
    error = math.log((codes.dense()[COUNTED] > 0).sum(dim=1).double().mean().item() / 2.0)
    assert 0 < abs(error) < 1
    torch.testing.assert_close(coder.log_threshold.detach() - before, torch.full_like(before, 0.02 * error))


def test_the_target_moves_along_a_line_and_stays() -> None:
    coder = make(ReLUConfig(latents=13, l0_target=2.0, l0_start=10.0, l0_steps=4))
    assert isinstance(coder, PenalisedCoder)
    seen = []
    for step in (1, 2, 4, 50):
        coder.begin_step(StepContext(0, step, 100))
        seen.append(coder.target_l0)
    assert seen == [8.0, 6.0, 2.0, 2.0]
    half = make(ReLUConfig(latents=13, l0_target=2.0, l0_start=10.0))
    half.begin_step(StepContext(0, 25, 100))
    assert isinstance(half, PenalisedCoder)
    assert half.target_l0 == 6.0


def test_thresholds_begin_where_white_input_has_the_targets_l0() -> None:
    config = JumpReLUConfig(latents=400, l0_target=20.0)
    coder = ARCHITECTURES["jumprelu"](config, 64, 64, tied=True, generator=torch.Generator().manual_seed(0))
    assert config.first_threshold == pytest.approx(0.4 * NormalDist().inv_cdf(0.95))
    u = torch.randn(2000, 64, generator=torch.Generator().manual_seed(1))
    assert coder.encode_normalised(u).l0().double().mean().item() == pytest.approx(20, rel=0.1)
    assert JumpReLUConfig(latents=400).first_threshold == 0.4


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (ReLUConfig, {"l0_target": 0.0}, "l0_target"),
        (ReLUConfig, {"l0_target": 1024.0}, "l0_target"),
        (ReLUConfig, {"l0_start": 5.0}, "l0_target, which is null"),
        (ReLUConfig, {"l0_target": 5.0, "l0_steps": 5}, "l0_start"),
        (ReLUConfig, {"l0_target": 5.0, "l1_coef": 0.0}, "l1_coef must be positive"),
        (ReLUConfig, {"sparsity_warmup": -1}, "sparsity_warmup"),
        (JumpReLUConfig, {"max_frequency": 1.0}, "max_frequency"),
        (JumpReLUConfig, {"max_frequency": 0.1, "l0_target": 150.0}, "at most 102.4, below l0_target = 150"),
        (JumpReLUConfig, {"frequency_coef": -1.0}, "frequency_coef"),
        (JumpReLUConfig, {"tanh_share": 0.0}, "tanh_share"),
        (JumpReLUConfig, {"threshold_lr": 0.0}, "threshold_lr"),
    ],
)
def test_impossible_settings_are_refused(config: type, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(config, settings, "coder")
