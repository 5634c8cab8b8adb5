"""Coders of every normalisation: what leaves the coder's space equals direct computations in raw space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from sparse_pipeline.analyze.reports.absorption.rates import unit_codes
from sparse_pipeline.analyze.reports.absorption.rows import decoder_cosines
from sparse_pipeline.analyze.reports.top_activations.logit_lens import logit_lens
from sparse_pipeline.analyze.subject.language_model import Unembedding
from sparse_pipeline.analyze.subject.subject import Subject
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.configs.base import Normalise
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.coders.topk import TopKConfig
from tests.synthetic import make_cache

SITE, WIDTH, F = "layer_01.resid_mid", 16, 24
KINDS: tuple[Normalise, ...] = ("scalar", "per_dimension", "whiten")


def coder_of(kind: Normalise, x: torch.Tensor) -> Coder:
    """With random weights, normalised by the rows [n, WIDTH]."""
    coder = build_coder(
        TopKConfig(latents=F, k=4, normalise=kind), WIDTH, WIDTH, tied=True, generator=torch.Generator().manual_seed(0)
    )
    moments = SiteMoments(x.mean(0), x.var(0, correction=0), torch.from_numpy(np.cov(x.numpy().T)))
    coder.set_normalisation(moments, moments)
    return coder.eval()


@pytest.fixture
def subject(tmp_path: Path, request: pytest.FixtureRequest) -> Subject:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1024, WIDTH, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    x[:, 3] *= 30
    cache = make_cache(tmp_path / "cache", acts={SITE: x.float()})
    return Subject("r", "run", coder_of(request.param, x), cache, SITE, SITE, Vocabulary.of(cache), tuple(cache.shards))


def contributions(coder: Coder) -> np.ndarray:
    """What a code of 1 of each latent adds to the reconstruction in raw space [F, d], by decoding it."""
    with torch.no_grad():
        nothing = coder.denormalise_target(torch.zeros(1, WIDTH))
        return (coder.denormalise_target(coder.w_dec) - nothing).double().numpy()


@pytest.mark.parametrize("subject", KINDS, indirect=True)
def test_projections_on_a_probe(subject: Subject) -> None:
    coder, direction = subject.coder, np.random.default_rng(0).standard_normal(WIDTH)
    with torch.no_grad():
        z = coder.encode(subject.cache.chunk(SITE, 0)).dense().double().numpy()
    codes = unit_codes(sparse.csr_array(z), subject.raw_w_dec)
    (cosines,) = decoder_cosines(subject.raw_w_dec, direction[None])
    direct = z * (contributions(coder) @ (direction / np.linalg.norm(direction)))
    np.testing.assert_allclose(codes.toarray() * cosines, direct, rtol=1e-4, atol=1e-4 * np.abs(direct).max())


@pytest.mark.parametrize("subject", KINDS, indirect=True)
def test_logit_lens(subject: Subject) -> None:
    generator = torch.Generator().manual_seed(2)
    w_u, gain = torch.randn(40, WIDTH, generator=generator), torch.rand(WIDTH, generator=generator) + 0.5
    found = logit_lens(torch.from_numpy(subject.raw_w_dec), Unembedding(w_u, gain), 3)
    logits = (contributions(subject.coder) * gain.double().numpy()) @ w_u.double().numpy().T
    logits -= logits.mean(1, keepdims=True)
    np.testing.assert_array_equal(found.top, np.argsort(-logits, axis=1)[:, :3])
    expected = np.sort(logits, axis=1)[:, :-4:-1]
    np.testing.assert_allclose(found.top_value, expected, rtol=1e-4, atol=1e-4 * np.abs(logits).max())


@pytest.mark.parametrize("subject", KINDS, indirect=True)
def test_raw_encoder_rows(subject: Subject) -> None:
    """The gradient of each pre-activation in the raw input."""
    coder = subject.coder
    x = subject.cache.chunk(SITE, 0)[:1].clone().requires_grad_()
    pre = coder.normalise_input(x) @ coder.w_enc.T
    rows = [torch.autograd.grad(pre[0, i], x, retain_graph=True)[0][0] for i in range(F)]
    np.testing.assert_allclose(subject.raw_w_enc, torch.stack(rows).numpy(), rtol=1e-4, atol=1e-4)
