"""Gated: codes and loss as written down in float64, and gradients that stop where the decoder is frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_pipeline.shared.coders import load_coder, save_coder
from sparse_pipeline.shared.coders.codes import Codes
from sparse_pipeline.shared.coders.gated import Gated, GatedConfig
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError
from tests.shared.coders.test_coders import make, rows

Array = NDArray[np.float64]
SHAPES = [(True, False), (False, False), (False, True)]


def gated(tied: bool = False, skip: bool = False, **settings: object) -> Gated:
    coder = make(GatedConfig(latents=13, skip=skip, l1_coef=0.3, **settings), tied)  # type: ignore[arg-type]
    assert isinstance(coder, Gated)
    with torch.no_grad():
        coder.log_scale.copy_(torch.linspace(-0.5, 0.5, 13, dtype=torch.float64))
        coder.b_mag.copy_(torch.linspace(0.4, -0.6, 13, dtype=torch.float64))
    return coder


def values(coder: Gated) -> dict[str, Array]:
    return {name: parameter.detach().numpy().copy() for name, parameter in coder.named_parameters()}


def literal(p: dict[str, Array], frozen: dict[str, Array], u: Array, t: Array) -> tuple[Array, dict[str, float]]:
    """(codes, loss terms) of the paper, row by row and latent by latent; `frozen` decodes the gate."""
    n, d_out = t.shape
    z, active = np.zeros((n, 13)), np.zeros((n, 13))
    for b in range(n):
        for i in range(13):
            gate = p["w_enc"][i] @ u[b] + p["b_enc"][i]
            magnitude = (np.exp(p["log_scale"][i]) * p["w_enc"][i]) @ u[b] + p["b_mag"][i]
            active[b, i] = max(gate, 0.0)
            z[b, i] = max(magnitude, 0.0) if gate > 0 else 0.0

    def decoded(codes: Array, q: dict[str, Array]) -> Array:
        skip = u @ q["w_skip"].T if "w_skip" in q else 0.0
        return np.asarray(codes @ q["w_dec"] + q["b_dec"] + skip)

    norms = np.sqrt((p["w_dec"] ** 2).sum(axis=1))
    return z, {
        "reconstruction": float(((t - decoded(z, p)) ** 2).sum() / (n * d_out)),
        "sparsity": float(0.3 * (active * norms).sum() / n / np.sqrt(d_out)),
        "gate": float(((t - decoded(active, frozen)) ** 2).sum() / (n * d_out)),
    }


@pytest.mark.parametrize(("tied", "skip"), SHAPES)
@pytest.mark.parametrize("norm", ["unit", "free"])
def test_codes_and_loss_equal_the_formula(tied: bool, skip: bool, norm: str) -> None:
    coder = gated(tied, skip, decoder_norm=norm)
    u, t = rows(coder)
    codes = coder.encode_normalised(u)
    z, expected = literal(values(coder), values(coder), u.numpy(), t.numpy())
    np.testing.assert_allclose(codes.dense().detach(), z, rtol=1e-12, atol=1e-14)
    gate, magnitude = coder.pre(u) > 0, codes.values > 0
    assert bool((gate & ~magnitude).any()), "a gate may be open on a magnitude of zero"
    terms = {name: value.item() for name, value in coder.losses(u, t, codes).items()}
    assert terms == {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}
    plain = Codes(codes.values.detach(), None, 13)
    assert coder.losses(u, t, plain)["gate"].item() == terms["gate"]


@pytest.mark.parametrize(("tied", "skip"), SHAPES)
def test_gradients_by_finite_differences_with_the_gates_decoder_held(tied: bool, skip: bool) -> None:
    coder = gated(tied, skip, decoder_norm="free")
    u, t = rows(coder)
    torch.stack(list(coder.losses(u, t, coder.encode_normalised(u)).values())).sum().backward()
    frozen = values(coder)
    for name, parameter in coder.named_parameters():
        assert parameter.grad is not None, name
        for index in [(0,) * parameter.dim(), (3,) * parameter.dim(), (-1,) * parameter.dim()]:
            sides = []
            for sign in (1, -1):
                moved = values(coder)
                moved[name][index] += sign * 1e-6
                sides.append(sum(literal(moved, frozen, u.numpy(), t.numpy())[1].values()))
            expected = (sides[0] - sides[1]) / 2e-6
            assert parameter.grad[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-8), (name, index)


def test_gradcheck_of_the_gates_own_term() -> None:
    """As a function of the encoder, the only part of the coder that the term may move."""
    coder = gated(skip=True)
    u, t = rows(coder)

    def term(w_enc: Tensor, b_enc: Tensor) -> Tensor:
        whole = {**dict(coder.named_parameters()), "w_enc": w_enc, "b_enc": b_enc}
        swapped = {f"coder.{name}": value for name, value in whole.items()}
        return torch.func.functional_call(Term(coder, u, t), swapped, ())  # type: ignore[no-any-return]

    leaves = tuple(p.detach().clone().requires_grad_() for p in (coder.w_enc, coder.b_enc))
    assert torch.autograd.gradcheck(term, leaves, eps=1e-7, atol=1e-6)
    coder.losses(u, t, coder.encode_normalised(u))["gate"].backward()
    moved = {
        name for name, parameter in coder.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert moved == {"w_enc", "b_enc"}


class Term(torch.nn.Module):
    def __init__(self, coder: Gated, u: Tensor, t: Tensor) -> None:
        super().__init__()
        self.coder, self.u, self.t = coder, u, t

    def forward(self) -> Tensor:
        return self.coder.losses(self.u, self.t, self.coder.encode_normalised(self.u))["gate"]


def test_the_l1_moves_the_gate_and_never_a_magnitude() -> None:
    coder = gated()
    u, t = rows(coder)
    coder.losses(u, t, coder.encode_normalised(u))["sparsity"].backward()
    assert coder.log_scale.grad is None
    assert coder.b_mag.grad is None
    assert coder.b_enc.grad is not None
    assert coder.b_enc.grad.any()


def test_codes_are_those_of_a_jumprelu_over_the_magnitudes() -> None:
    coder = gated()
    u, _ = rows(coder, 200)
    p = values(coder)
    scale = np.exp(p["log_scale"])
    magnitude = u.numpy() @ (p["w_enc"] * scale[:, None]).T + p["b_mag"]
    threshold = np.maximum(p["b_mag"] - scale * p["b_enc"], 0)
    codes = coder.eval().encode_normalised(u).dense().detach()
    np.testing.assert_allclose(codes, np.where(magnitude > threshold, magnitude, 0), rtol=1e-10, atol=1e-12)


def test_at_its_start_it_is_a_relu_coder_with_finite_gradients() -> None:
    coder = make(GatedConfig(latents=13))
    u, t = rows(coder)
    with torch.no_grad():
        coder.b_enc.zero_()
        coder.w_dec.zero_()  # as a transcoder's
    torch.testing.assert_close(coder.encode_normalised(u).values, torch.relu(u @ coder.w_enc.T))
    torch.stack(list(coder.losses(u, t, coder.encode_normalised(u)).values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in coder.parameters())


def test_dead_latents_are_asked_to_explain_the_error() -> None:
    coder = gated()
    coder.dead_after = 100
    coder.since_fired[:4] = 100
    u, t = rows(coder)
    codes = coder.encode_normalised(u)
    expected = coder.aux_loss(u, (t - coder.decode_normalised(codes, u)).detach())
    assert expected is not None
    assert coder.losses(u, t, codes)["aux"].item() == expected.item()


def test_a_saved_coder_comes_back(tmp_path: Path) -> None:
    coder = gated().float()
    u = rows(coder)[0]
    save_coder(coder, tmp_path)
    assert torch.equal(load_coder(tmp_path).encode_normalised(u).dense(), coder.encode_normalised(u).dense())


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="l1_coef must be 0 or more"):
        validate(GatedConfig, {"l1_coef": -1.0}, "coder")
