"""ReLU with L1: codes, loss and gradients as written down, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders.codes import Codes
from sparse_pipeline.shared.coders.relu import ReLUConfig
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError
from tests.shared.coders.test_coders import make, rows


@pytest.mark.parametrize(("tied", "skip"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("norm", ["unit", "free"])
def test_codes_and_loss_equal_the_formula(tied: bool, skip: bool, norm: str) -> None:
    coder = make(ReLUConfig(latents=13, skip=skip, decoder_norm=norm, l1_coef=0.3), tied)  # type: ignore[arg-type]
    u, t = rows(coder)
    codes = coder.encode_normalised(u)
    w_enc, b_enc, w_dec, b_dec = (p.detach().numpy() for p in (coder.w_enc, coder.b_enc, coder.w_dec, coder.b_dec))
    z = np.maximum(u.numpy() @ w_enc.T + b_enc, 0)
    np.testing.assert_allclose(codes.dense().detach(), z, rtol=1e-12, atol=1e-14)
    assert codes.latents is None
    y = z @ w_dec + b_dec
    if coder.w_skip is not None:
        y = y + u.numpy() @ coder.w_skip.detach().numpy().T
    l1 = sum(z[b, i] * np.sqrt((w_dec[i] ** 2).sum()) for b in range(len(z)) for i in range(13)) / len(z)
    terms = {name: value.item() for name, value in coder.losses(u, t, codes).items()}
    assert terms == {
        "reconstruction": pytest.approx(((t.numpy() - y) ** 2).sum(1).mean() / coder.d_out, rel=1e-12),
        "sparsity": pytest.approx(0.3 * l1 / np.sqrt(coder.d_out), rel=1e-12),
    }
    plain = Codes(codes.values, None, 13)
    assert coder.losses(u, t, plain)["sparsity"].item() == terms["sparsity"]


def test_every_gradient_is_right_by_finite_differences() -> None:
    coder = make(ReLUConfig(latents=13, decoder_norm="free", l1_coef=0.3))
    u, t = rows(coder)
    torch.stack(list(coder.losses(u, t, coder.encode_normalised(u)).values())).sum().backward()
    for parameter in coder.parameters():
        assert parameter.grad is not None
        for index in [(0,) * parameter.dim(), (3,) * parameter.dim()]:
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[index] += sign * 1e-6
                    sides.append(sum(v.item() for v in coder.losses(u, t, coder.encode_normalised(u)).values()))
                    parameter[index] -= sign * 1e-6
            assert parameter.grad[index].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-9)


def test_a_transcoder_at_its_start_has_finite_gradients() -> None:
    coder = make(ReLUConfig(latents=13))
    with torch.no_grad():
        coder.w_dec.zero_()  # as it starts: a norm has no gradient there
    u, t = rows(coder)
    torch.stack(list(coder.losses(u, t, coder.encode_normalised(u)).values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in coder.parameters())


def test_dead_latents_are_asked_to_explain_the_error() -> None:
    coder = make(ReLUConfig(latents=13))
    coder.dead_after = 100
    coder.since_fired[:4] = 100
    u, t = rows(coder)
    codes = coder.encode_normalised(u)
    error = t - coder.decode_normalised(codes, u)
    expected = coder.aux_loss(u, error.detach())
    assert expected is not None
    assert coder.losses(u, t, codes)["aux"].item() == expected.item()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="l1_coef must be 0 or more"):
        validate(ReLUConfig, {"l1_coef": -1.0}, "coder")
