"""What every architecture owes: losses equal to the formulas, exact gradients, normalisation, unit rows, AuxK."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_pipeline.shared.coders import ARCHITECTURES, Coder, CoderConfig, build_coder
from sparse_pipeline.shared.coders.base import RMS_EPS
from sparse_pipeline.shared.coders.configs.base import ENCODER_NORM
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError

CONFIGS = [
    TopKConfig(latents=13, k=3),
    TopKConfig(latents=13, k=13),
    MatryoshkaConfig(latents=13, k=3),
    MatryoshkaConfig(latents=13, k=4, groups=(2, 1, 10)),
    MatryoshkaConfig(latents=13, k=3, prefixes="random", n_prefixes=4),
    MatryoshkaConfig(latents=13, k=3, skip=True, input_transform="rms", decoder_norm="free"),
]


def make(config: CoderConfig, tied: bool = False, dtype: torch.dtype = torch.float64, d: int = 6) -> Coder:
    g = torch.Generator().manual_seed(5)
    coder = build_coder(config, d, d if tied else d - 1, tied=tied, generator=g).to(dtype)
    with torch.no_grad():  # away from the special initial values
        coder.b_enc.normal_(std=0.3, generator=g)
        coder.b_dec.normal_(std=0.3, generator=g)
        if coder.w_skip is not None:
            coder.w_skip.normal_(std=0.3, generator=g)
        if not tied:
            coder.w_dec.normal_(generator=g)
    coder.project_parameters()  # unit rows to the last bit of this dtype
    return coder


def rows(coder: Coder, n: int = 9) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(6)
    dtype = coder.w_enc.dtype
    u = torch.randn(n, coder.d_in, generator=g, dtype=torch.float64).to(dtype)
    t = torch.randn(n, coder.d_out, generator=g, dtype=torch.float64).to(dtype)
    return u, t


def literal_codes(coder: Coder, u: Tensor) -> NDArray[np.float64]:
    """TopK, written out."""
    pre = u.numpy() @ coder.w_enc.detach().numpy().T + coder.b_enc.detach().numpy()
    z = np.zeros_like(pre)
    for b in range(pre.shape[0]):
        for i in np.argsort(-pre[b], kind="stable")[: coder.config.k]:  # type: ignore[attr-defined]
            z[b, i] = max(pre[b, i], 0.0)
    return z


def literal_loss(coder: Coder, u: Tensor, t: Tensor) -> float:
    """The reconstruction loss, written out."""
    z = literal_codes(coder, u)
    w, bias = coder.w_dec.detach().numpy(), coder.b_dec.detach().numpy()
    base = np.tile(bias, (u.shape[0], 1))
    if coder.w_skip is not None:
        base = base + u.numpy() @ coder.w_skip.detach().numpy().T
    prefixes = coder.prefixes or (coder.n_latents,)
    total = 0.0
    for prefix in prefixes:
        y_hat = base + z[:, :prefix] @ w[:prefix]
        total += ((t.numpy() - y_hat) ** 2).sum(axis=1).mean() / coder.d_out
    return total / len(prefixes)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_loss_equals_the_formula(config: CoderConfig, tied: bool) -> None:
    coder = make(config, tied)
    u, t = rows(coder)
    codes = coder.encode_normalised(u)
    np.testing.assert_allclose(codes.dense().detach(), literal_codes(coder, u), rtol=1e-12, atol=1e-12)
    terms = coder.losses(u, t, codes)
    assert list(terms) == ["reconstruction"]  # nothing is dead, so AuxK stays away
    assert terms["reconstruction"].item() == pytest.approx(literal_loss(coder, u, t), rel=1e-12)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_parameter_gradient_is_right_by_finite_differences(config: CoderConfig) -> None:
    coder = make(config)
    u, t = rows(coder)
    names = [name for name, _ in coder.named_parameters()]

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coder = coder

        def forward(self) -> Tensor:
            return coder.losses(u, t, coder.encode_normalised(u))["reconstruction"]

    def loss(*values: Tensor) -> Tensor:
        swapped = {f"coder.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Loss(), swapped, ())

    values = tuple(p.detach().clone().requires_grad_() for p in coder.parameters())
    assert torch.autograd.gradcheck(loss, values, eps=1e-7, atol=1e-6)


def test_ties_select_exactly_k_and_the_gradient_follows_the_selection() -> None:
    coder = make(TopKConfig(latents=13, k=3))
    with torch.no_grad():
        coder.w_enc.copy_(coder.w_enc[:1].expand_as(coder.w_enc))
        coder.b_enc.fill_(5.0)  # every pre-activation of a row is the same, and positive
    u, t = rows(coder)
    codes = coder.encode_normalised(u)
    assert codes.latents is not None
    assert codes.l0().tolist() == [3] * len(u)
    assert all(len(set(row)) == 3 for row in codes.latents.tolist())
    sum(coder.losses(u, t, codes).values()).backward()  # type: ignore[union-attr]
    chosen = codes.fired()
    assert coder.b_enc.grad is not None
    assert torch.equal(coder.b_enc.grad != 0, chosen)


def test_selecting_in_bfloat16_keeps_exact_values() -> None:
    coder = make(TopKConfig(latents=13, k=3), dtype=torch.float32)
    coder.selection_dtype = torch.bfloat16
    u, _ = rows(coder)
    codes = coder.encode_normalised(u)
    assert codes.latents is not None
    pre = u.double() @ coder.w_enc.double().T + coder.b_enc.double()
    exact = torch.relu(pre.gather(1, codes.latents))
    torch.testing.assert_close(codes.values.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_encode_and_decode_undo_the_normalisation(config: CoderConfig) -> None:
    coder = make(config)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(50, coder.d_in, generator=g, dtype=torch.float64) * 3 + 2
    y = torch.randn(50, coder.d_out, generator=g, dtype=torch.float64) * 0.2 - 1
    coder.set_normalisation(*(SiteMoments(v.mean(0), v.var(0, correction=0)) for v in (x, y)))
    u, t = coder.normalise_input(x), coder.normalise_target(y)
    if config.input_transform == "raw":
        torch.testing.assert_close(u.mean(0), torch.zeros(coder.d_in, dtype=torch.float64), atol=1e-6, rtol=0)
        assert u.square().sum(1).mean().item() == pytest.approx(coder.d_in, rel=1e-6)
    else:
        root = np.sqrt((x.numpy() ** 2).mean(1, keepdims=True) + RMS_EPS)
        np.testing.assert_allclose(u, x.numpy() / root)
    assert t.square().sum(1).mean().item() == pytest.approx(coder.d_out, rel=1e-6)
    y_hat = coder.decode(coder.encode(x), x)
    torch.testing.assert_close(coder.normalise_target(y_hat), coder.decode_normalised(coder.encode_normalised(u), u))


def test_an_sae_decoder_starts_as_the_encoder_and_a_transcoder_at_zero() -> None:
    sae = build_coder(TopKConfig(latents=8, k=2), 4, 4, tied=True, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.w_enc, sae.w_dec * ENCODER_NORM)
    torch.testing.assert_close(sae.w_dec.norm(dim=1), torch.ones(8))
    transcoder = build_coder(TopKConfig(latents=16), 4, 3, tied=False)
    assert not transcoder.w_dec.any()
    transcoder.project_parameters()  # a row of zeros has no direction to keep
    assert not transcoder.w_dec.any()
    transcoder.randomise_decoder(torch.Generator().manual_seed(0))
    torch.testing.assert_close(transcoder.w_dec.norm(dim=1), torch.ones(16))
    assert transcoder.is_transcoder
    assert not sae.is_transcoder
    with pytest.raises(ValueError, match="one width"):
        build_coder(TopKConfig(latents=16), 4, 3, tied=True)


def test_one_seed_one_start() -> None:
    a, b = (
        build_coder(TopKConfig(latents=16), 4, 3, tied=False, generator=torch.Generator().manual_seed(7)) for _ in "ab"
    )
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_unit_rows_lose_the_gradient_along_them_and_keep_their_length() -> None:
    coder = make(TopKConfig(latents=13, k=3))
    u, t = rows(coder)
    coder.losses(u, t, coder.encode_normalised(u))["reconstruction"].backward()
    assert coder.w_dec.grad is not None
    before = coder.w_dec.grad.clone()
    coder.project_gradients()
    w = coder.w_dec.detach()
    expected = before - (before * w).sum(1, keepdim=True) * w
    torch.testing.assert_close(coder.w_dec.grad, expected)
    assert (coder.w_dec.grad * w).sum(1).abs().max() < 1e-12
    with torch.no_grad():
        coder.w_dec.add_(coder.w_dec.grad, alpha=-0.5)
    coder.project_parameters()
    torch.testing.assert_close(coder.w_dec.detach().norm(dim=1), torch.ones(13, dtype=torch.float64))


def test_free_rows_are_left_alone() -> None:
    coder = make(TopKConfig(latents=13, k=3, decoder_norm="free"))
    u, t = rows(coder)
    coder.losses(u, t, coder.encode_normalised(u))["reconstruction"].backward()
    assert coder.w_dec.grad is not None
    gradient, weights = coder.w_dec.grad.clone(), coder.w_dec.detach().clone()
    coder.project_gradients()
    coder.project_parameters()
    assert torch.equal(coder.w_dec.grad, gradient)
    assert torch.equal(coder.w_dec.detach(), weights)


# AuxK


def with_dead(aux_k: int | None, n_dead: int, config: type[TopKConfig] = TopKConfig) -> Coder:
    coder = make(config(latents=13, k=3, aux_k=aux_k))
    coder.dead_after = 100
    coder.since_fired[:n_dead] = 100
    coder.since_fired[n_dead:] = 99
    return coder


@pytest.mark.parametrize(("aux_k", "n_dead"), [(2, 5), (4, 3), (None, 6), (1, 1)])
def test_aux_loss_equals_the_formula(aux_k: int | None, n_dead: int) -> None:
    coder = with_dead(aux_k, n_dead)
    u, t = rows(coder)
    codes = coder.encode_normalised(u)
    terms = coder.losses(u, t, codes)
    e = t.numpy() - coder.decode_normalised(codes, u).detach().numpy()
    pre = u.numpy() @ coder.w_enc.detach().numpy().T + coder.b_enc.detach().numpy()
    k_aux = coder.d_out // 2 if aux_k is None else aux_k
    e_hat = np.zeros_like(e)
    for b in range(len(e)):
        for i in np.argsort(-pre[b, :n_dead])[:k_aux]:
            e_hat[b] += max(pre[b, i], 0) * coder.w_dec.detach().numpy()[i]
    expected = (1 / 32) * min(n_dead / k_aux, 1) * ((e - e_hat) ** 2).sum() / ((e - e.mean(0)) ** 2).sum()
    assert terms["aux"].item() == pytest.approx(expected, rel=1e-12)


def test_the_aux_gradient_reaches_the_encoder_of_dead_latents_and_is_right() -> None:
    coder = with_dead(2, 5)
    u, _ = rows(coder)
    error = torch.randn(len(u), coder.d_out, dtype=torch.float64)
    aux = coder.aux_loss(u, error)
    assert aux is not None
    aux.backward()
    assert coder.w_enc.grad is not None
    assert coder.b_enc.grad is not None
    assert coder.w_enc.grad[:5].abs().sum() > 0
    assert not coder.w_enc.grad[5:].any()  # live latents are not asked
    for parameter in (coder.w_enc, coder.b_enc, coder.w_dec):
        assert parameter.grad is not None
        for index in [(0,) * parameter.dim(), (4,) * parameter.dim(), (1,) * parameter.dim()]:
            step, sides = 1e-6, []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[index] += sign * step
                    value = coder.aux_loss(u, error)
                    assert value is not None
                    sides.append(value.item())
                    parameter[index] -= sign * step
            numeric = (sides[0] - sides[1]) / (2 * step)
            assert parameter.grad[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_aux_is_off_without_dead_latents_or_when_switched_off() -> None:
    for coder in (with_dead(2, 0), with_dead(0, 5), make(TopKConfig(latents=13, k=3))):
        u, t = rows(coder)
        assert "aux" not in coder.losses(u, t, coder.encode_normalised(u))


def test_silence_is_counted_in_tokens() -> None:
    coder = make(TopKConfig(latents=13, k=3))
    coder.dead_after = 18
    u, _ = rows(coder)
    codes = coder.encode_normalised(u)
    for _ in range(2):
        coder.after_step(codes)
    silent = ~codes.fired()
    assert torch.equal(coder.since_fired, torch.where(silent, 18, 0))
    assert torch.equal(coder.dead, silent)


# settings


def test_default_groups_are_the_documented_fractions_and_always_sum() -> None:
    assert MatryoshkaConfig(latents=2048).group_sizes() == (256, 512, 1024, 256)
    for latents in range(8, 60):
        assert sum(MatryoshkaConfig(latents=latents, k=1).group_sizes()) == latents
    assert make(MatryoshkaConfig(latents=13, k=3, groups=(2, 1, 10))).prefixes == (2, 3, 13)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "matryoshka", "latents": 10, "k": 2, "groups": [5, 6]}, "sum to 11, but latents is 10"),
        ({"architecture": "matryoshka", "latents": 10, "k": 2, "groups": [10, 0]}, "at least one latent"),
        ({"architecture": "topk", "latents": 8, "k": 9}, "k must be between 1 and latents = 8, not 9"),
        ({"architecture": "topk", "latents": 8, "k": 0}, "k must be between 1 and latents = 8, not 0"),
        ({"architecture": "topk", "latents": 0}, "latents must be at least 1"),
        ({"architecture": "topk", "aux_k": -1}, "aux_k must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], said: str) -> None:
    config_class = ARCHITECTURES[str(settings["architecture"])].config_class
    with pytest.raises(ConfigError, match=said):
        validate(config_class, settings, "coder")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_is_registered_under_its_own_name(name: str) -> None:
    config = ARCHITECTURES[name].config_class
    assert {field.name: field.default for field in dataclasses.fields(config)}["architecture"] == name
