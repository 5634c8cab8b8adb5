"""Each normalisation against its closed form, and folded into the weights: the same coder in raw activation space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders import Coder, build_coder, load_coder, save_coder
from sparse_pipeline.shared.coders.base import RMS_EPS
from sparse_pipeline.shared.coders.configs.base import Normalise
from sparse_pipeline.shared.coders.normalisation import SiteMoments, whitening
from sparse_pipeline.shared.coders.topk import TopKConfig

KINDS: tuple[Normalise, ...] = ("scalar", "per_dimension", "whiten")
D, ROWS = 12, 4000


def rows(seed: int, d: int = D) -> Tensor:
    """Correlated rows [ROWS, d] float64 with one dimension that carries most of the variance."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)
    x[:, 3] = 50 * torch.randn(ROWS, generator=g, dtype=torch.float64) + 20
    return x + 2


def moments(x: Tensor) -> SiteMoments:
    return SiteMoments(x.mean(0), x.var(0, correction=0), torch.from_numpy(np.cov(x.numpy().T, bias=True)))


def made(kind: Normalise, x: Tensor, y: Tensor | None = None, **settings: object) -> Coder:
    """A float64 coder with random weights, normalised by the rows' moments; an SAE without y."""
    config = TopKConfig(latents=40, k=5, normalise=kind, **settings)  # type: ignore[arg-type]
    target = x if y is None else y
    coder = build_coder(
        config, x.shape[1], target.shape[1], tied=y is None, generator=torch.Generator().manual_seed(0)
    ).double()
    coder.set_normalisation(moments(x), moments(target))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return coder.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_rows_have_mean_zero_and_mean_square_one(kind: Normalise) -> None:
    x = rows(0)
    coder = made(kind, x)
    for u in (coder.normalise_input(x), coder.normalise_target(x)):
        assert u.mean(0).abs().max() < 1e-6
        assert u.square().sum(1).mean().item() == pytest.approx(D, rel=1e-6)
    torch.testing.assert_close(coder.denormalise_target(coder.normalise_target(x)), x, rtol=1e-6, atol=1e-5)


def test_what_each_kind_does_to_the_covariance() -> None:
    x = rows(0)
    var = x.var(0, correction=0).numpy()
    scalar = made("scalar", x).normalise_input(x).numpy()
    np.testing.assert_allclose(scalar.var(0), var / var.mean(), rtol=1e-5)
    each = made("per_dimension", x).normalise_input(x).numpy()
    np.testing.assert_allclose(each.var(0), np.ones(D), rtol=1e-5)
    whitened = made("whiten", x, whiten_shrinkage=1e-7).normalise_input(x).numpy()
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(D), atol=1e-3)


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance() -> None:
    covariance = np.cov(rows(2).numpy().T, bias=True)
    w, inverse = whitening(torch.from_numpy(covariance), 0.05)
    values, vectors = np.linalg.eigh(covariance)
    shrunk = values + 0.05 * values.mean()
    c = np.sqrt(D / (values / shrunk).sum())
    np.testing.assert_allclose(w.numpy(), c * (vectors / np.sqrt(shrunk)) @ vectors.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose((w @ inverse).numpy(), np.eye(D), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["sae", "transcoder", "skip", "rms"])
def test_folded_weights_give_the_same_codes_and_reconstruction(kind: Normalise, case: str) -> None:
    x, y = rows(0), rows(3, 9)
    extra = {"sae": {}, "transcoder": {}, "skip": {"skip": True}, "rms": {"input_transform": "rms"}}[case]
    coder = made(kind, x, None if case == "sae" else y, **extra)
    folded = coder.fold()
    raw = x / (x.square().mean(1, keepdim=True) + RMS_EPS).sqrt() if case == "rms" else x
    with torch.no_grad():
        codes = coder.encode(x)
        expected = coder.decode(codes, x)
    pre = raw @ folded.w_enc.T + folded.b_enc
    values, latents = pre.topk(5, dim=1)
    z = torch.zeros(ROWS, 40, dtype=torch.float64).scatter(1, latents, values.relu())
    torch.testing.assert_close(z, codes.dense(), rtol=1e-5, atol=1e-5)
    found = z @ folded.w_dec + folded.b_dec
    if folded.w_skip is not None:
        found = found + raw @ folded.w_skip.T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_coder_comes_back_with_its_normalisation(kind: Normalise, tmp_path) -> None:
    x = rows(0).float()
    coder = made(kind, x.double(), rows(3, 9)).float()
    save_coder(coder, tmp_path)
    again = load_coder(tmp_path)
    with torch.no_grad():
        assert torch.equal(coder.decode(coder.encode(x)), again.decode(again.encode(x)))


def test_raw_directions_are_what_a_code_adds_to_the_reconstruction() -> None:
    x = rows(0)
    for kind in KINDS:
        coder = made(kind, x)
        with torch.no_grad():
            zero = coder.denormalise_target(coder.b_dec.unsqueeze(0))
            added = coder.denormalise_target(coder.b_dec + coder.w_dec) - zero
        torch.testing.assert_close(coder.raw_directions(coder.w_dec), added, rtol=1e-6, atol=1e-6)


def test_a_constant_site_is_refused_by_whitening_and_kept_by_the_others() -> None:
    with pytest.raises(ValueError, match="covariance is zero"):
        whitening(torch.zeros(3, 3), 0.01)
    constant = SiteMoments(torch.ones(D), torch.zeros(D))
    for kind in ("scalar", "per_dimension"):
        coder = build_coder(TopKConfig(latents=8, k=2, normalise=kind), D, D, tied=True)
        coder.set_normalisation(constant, constant)
        assert torch.equal(coder.normalise_input(torch.ones(2, D)), torch.zeros(2, D))
