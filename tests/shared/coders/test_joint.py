"""Coders of several sites, against the literal formulas in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_pipeline.shared.coders import Coder, CoderConfig, build_coder, load_coder, save_coder
from sparse_pipeline.shared.coders.configs.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.configs.jumprelu import JumpReLUConfig
from sparse_pipeline.shared.coders.configs.relu import ReLUConfig
from sparse_pipeline.shared.coders.configs.topk import TopKConfig
from sparse_pipeline.shared.coders.normalisation import SiteMoments, whitening
from sparse_pipeline.shared.coders.warm_start import refuse
from sparse_pipeline.shared.errors import UsageError

WIDTHS, F, K = (3, 5), 12, 3


def coder_of(config: CoderConfig, seed: int = 0) -> Coder:
    generator = torch.Generator().manual_seed(seed)
    coder = build_coder(config, WIDTHS, WIDTHS, tied=True, generator=generator).double()
    with torch.no_grad():
        coder.w_dec.copy_(torch.randn(F, 8, generator=generator, dtype=torch.float64))
        coder.b_dec.copy_(torch.randn(8, generator=generator, dtype=torch.float64))
    return coder


def norms(coder: Coder) -> torch.Tensor:
    return coder.w_dec[:, :3].norm(dim=1) + coder.w_dec[:, 3:].norm(dim=1)


@pytest.fixture
def u() -> torch.Tensor:
    return torch.randn(7, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_selection_is_by_the_sum_of_the_sites_norms(u: torch.Tensor) -> None:
    coder = coder_of(TopKConfig(latents=F, k=K, decoder_norm="free")).train()
    pre = u @ coder.w_enc.T + coder.b_enc
    chosen = (pre * norms(coder)).topk(K, dim=1).indices
    assert not torch.equal(chosen.sort().values, pre.topk(K, dim=1).indices.sort().values)
    expected = torch.zeros(7, F, dtype=torch.float64).scatter(1, chosen, pre.gather(1, chosen).relu())
    torch.testing.assert_close(coder.encode_normalised(u).dense(), expected)

    batch = coder_of(BatchTopKConfig(latents=F, k=K, decoder_norm="free")).train()
    score = (pre * norms(batch)).relu()
    kept = score >= score.flatten().topk(7 * K).values[-1]
    codes = batch.encode_normalised(u)
    torch.testing.assert_close(codes.dense(), pre * kept)
    batch.after_step(codes)
    assert isinstance(batch.threshold, torch.Tensor)
    torch.testing.assert_close(batch.threshold, score[kept].min())
    batch.eval()
    torch.testing.assert_close(batch.encode_normalised(u).dense(), pre * (score > batch.threshold))


def test_gradients_of_the_weighted_l1_are_those_of_the_literal_formula(u: torch.Tensor) -> None:
    coder = coder_of(ReLUConfig(latents=F, l1_coef=0.3, decoder_norm="free"))
    losses = coder.losses(u, u, coder.encode_normalised(u))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    w_enc, w_dec, b_dec = (v.detach().clone().requires_grad_() for v in (coder.w_enc, coder.w_dec, coder.b_dec))
    z = (u @ w_enc.T + coder.b_enc.detach()).relu()
    t_hat = z @ w_dec + b_dec
    site_norms = w_dec[:, :3].square().sum(1).sqrt() + w_dec[:, 3:].square().sum(1).sqrt()
    literal = ((u - t_hat) ** 2).sum() / (7 * 8) + 0.3 * (z @ site_norms).mean() / (2 * 8) ** 0.5
    literal.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(sum(losses.values()), literal)
    for ours, theirs in ((coder.w_enc, w_enc), (coder.w_dec, w_dec), (coder.b_dec, b_dec)):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("normalise", ["scalar", "per_dimension", "whiten"])
def test_each_site_is_normalised_as_it_would_be_alone(normalise: str, u: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 8, generator=generator, dtype=torch.float64) @ torch.randn(8, 8, generator=generator).double()
    x[:, 3:] = x[:, 3:] * 30 + 7
    covariance = torch.cov(x.T, correction=0)
    joint = SiteMoments(x.mean(0), x.var(0, correction=0), covariance)
    coder = coder_of(TopKConfig(latents=F, k=K, normalise=normalise))  # type: ignore[arg-type]
    coder.set_normalisation(joint, joint)
    expected = []
    for part in (x[:, :3], x[:, 3:]):
        centred = part - part.mean(0)
        if normalise == "scalar":
            expected.append(centred / centred.square().mean().sqrt())
        elif normalise == "per_dimension":
            expected.append(centred / centred.square().mean(0).sqrt())
        else:
            expected.append(centred @ whitening(torch.cov(part.T, correction=0), coder.config.whiten_shrinkage)[0])
    torch.testing.assert_close(coder.normalise_input(x), torch.cat(expected, dim=1))
    torch.testing.assert_close(coder.denormalise_target(coder.normalise_target(x)), x)
    folded = coder.fold()
    torch.testing.assert_close(
        x @ folded.w_enc.T + folded.b_enc, coder.normalise_input(x) @ coder.w_enc.T + coder.b_enc
    )


def test_rms_is_that_of_each_site() -> None:
    coder = coder_of(TopKConfig(latents=F, k=K, input_transform="rms"))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parts = [part / part.square().mean(1, keepdim=True).sqrt() for part in (x[:, :3], x[:, 3:])]
    torch.testing.assert_close(coder.normalise_input(x), torch.cat(parts, dim=1), rtol=1e-5, atol=1e-5)


def test_saved_and_loaded_with_the_widths_of_its_sites(tmp_path: Path, u: torch.Tensor) -> None:
    coder = coder_of(JumpReLUConfig(latents=F)).float()
    save_coder(coder, tmp_path / "coder", {"source": "a+b", "target": "a+b"})
    again = load_coder(tmp_path / "coder")
    assert (again.source_widths, again.target_widths, again.kind) == (WIDTHS, WIDTHS, "crosscoder")
    torch.testing.assert_close(again.encode(u.float()).dense(), coder.encode(u.float()).dense())
    other = build_coder(JumpReLUConfig(latents=F), (4, 4), (4, 4), tied=True)
    with pytest.raises(UsageError, match=r"differs in input width: found 3 \+ 5, expected 4 \+ 4"):
        refuse(other, again, "coder")
