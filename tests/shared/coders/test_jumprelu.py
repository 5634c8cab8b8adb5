"""JumpReLU: codes and loss as written down; the pseudo-gradients of the paper, term by term, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparse_pipeline.shared.coders import Coder, load_coder, save_coder
from sparse_pipeline.shared.coders.codes import Codes
from sparse_pipeline.shared.coders.jumprelu import JumpReLU, JumpReLUConfig
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError
from tests.shared.coders.test_coders import make, rows

Array = NDArray[np.float64]


def jump(tied: bool = False, skip: bool = False, bandwidth: float = 0.5) -> JumpReLU:
    coder = make(JumpReLUConfig(latents=13, skip=skip, l0_coef=0.3, bandwidth=bandwidth), tied)
    assert isinstance(coder, JumpReLU)
    with torch.no_grad():
        coder.log_threshold.add_(torch.linspace(-0.5, 0.5, 13, dtype=torch.float64))
    return coder


def parts(coder: Coder, u: torch.Tensor) -> tuple[Array, Array]:
    """(π, θ)"""
    assert isinstance(coder, JumpReLU)
    pre = u.numpy() @ coder.w_enc.detach().numpy().T + coder.b_enc.detach().numpy()
    return pre, np.exp(coder.log_threshold.detach().numpy())


@pytest.mark.parametrize(("tied", "skip"), [(True, False), (False, False), (False, True)])
def test_codes_and_loss_equal_the_formula(tied: bool, skip: bool) -> None:
    coder = jump(tied, skip)
    u, t = rows(coder)
    pre, theta = parts(coder, u)
    z = np.where(pre > theta, pre, 0)
    codes = coder.encode_normalised(u)
    np.testing.assert_allclose(codes.dense().detach(), z, rtol=1e-12)
    assert 0 < (z > 0).mean() < (pre > 0).mean()
    y = z @ coder.w_dec.detach().numpy() + coder.b_dec.detach().numpy()
    if coder.w_skip is not None:
        y = y + u.numpy() @ coder.w_skip.detach().numpy().T
    terms = {name: value.item() for name, value in coder.losses(u, t, codes).items()}
    assert terms == {
        "reconstruction": pytest.approx(((t.numpy() - y) ** 2).mean(), rel=1e-12),
        "sparsity": pytest.approx(0.3 * (z > 0).sum(1).mean(), rel=1e-12),
    }
    plain = Codes(codes.values.detach(), None, 13)
    assert coder.losses(u, t, plain)["sparsity"].item() == terms["sparsity"]


def test_the_threshold_has_the_gradients_of_the_paper() -> None:
    coder = jump()
    u, t = rows(coder)
    pre, theta = parts(coder, u)
    inside = np.abs((pre - theta) / 0.5) < 0.5
    assert inside.any(axis=0).sum() > 5
    z = np.where(pre > theta, pre, 0)
    w = coder.w_dec.detach().numpy()
    error = z @ w + coder.b_dec.detach().numpy() - t.numpy()
    to_z = 2 * error @ w.T / error.size
    by_theta = {
        "reconstruction": -(theta / 0.5) * (to_z * inside).sum(0),
        "sparsity": -0.3 / 0.5 * inside.sum(0) / len(pre),
    }
    for name, expected in by_theta.items():
        coder.zero_grad()
        coder.losses(u, t, coder.encode_normalised(u))[name].backward()
        assert coder.log_threshold.grad is not None
        np.testing.assert_allclose(coder.log_threshold.grad, expected * theta, rtol=1e-10, atol=1e-14)
        if name == "sparsity":
            assert coder.w_enc.grad is None  # the count moves the thresholds alone
        else:
            assert coder.w_enc.grad is not None
            to_pre = to_z * (pre > theta)
            np.testing.assert_allclose(coder.w_enc.grad, to_pre.T @ u.numpy(), rtol=1e-10, atol=1e-14)


def test_minimising_the_count_alone_silences_latents() -> None:
    coder = jump(bandwidth=1.0)
    u, t = rows(coder, 200)
    before = coder.encode_normalised(u).l0().double().mean()
    optimizer = torch.optim.Adam(coder.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        coder.losses(u, t, coder.encode_normalised(u))["sparsity"].backward()
        optimizer.step()
    assert coder.encode_normalised(u).l0().double().mean() < before / 2


def test_saved_thresholds_come_back(tmp_path: Path) -> None:
    coder = jump().float()
    u = rows(coder)[0]
    save_coder(coder, tmp_path)
    again = load_coder(tmp_path)
    assert torch.equal(again.encode_normalised(u).dense(), coder.encode_normalised(u).dense())


@pytest.mark.parametrize("settings", [{"l0_coef": -1.0}, {"threshold": 0.0}, {"bandwidth": 0.0}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        validate(JumpReLUConfig, settings, "coder")
