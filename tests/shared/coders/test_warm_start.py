"""A coder that starts from another: the same function, on raw activations, under any normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders import ARCHITECTURES, Coder
from sparse_pipeline.shared.coders.batchtopk import BatchTopK
from sparse_pipeline.shared.coders.configs.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.configs.jumprelu import JumpReLUConfig
from sparse_pipeline.shared.coders.configs.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.configs.topk import TopKConfig
from sparse_pipeline.shared.coders.jumprelu import JumpReLU
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.coders.warm_start import distances, frequency_thresholds, refuse, transfer
from sparse_pipeline.shared.errors import UsageError
from tests.shared.coders.test_coders import make


def moments(d: int, seed: int) -> SiteMoments:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=g, dtype=torch.float64)
    covariance = a @ a.T + torch.eye(d)
    return SiteMoments(torch.randn(d, generator=g, dtype=torch.float64), covariance.diagonal(), covariance)


def normalised(coder: Coder, seed: int) -> Coder:
    source = moments(coder.d_in, seed)
    coder.set_normalisation(source, source if coder.tied else moments(coder.d_out, seed + 1))
    return coder.eval()


def settings(name: str, **more: Any) -> Any:
    fields = ARCHITECTURES[name].config_class.__dataclass_fields__
    return ARCHITECTURES[name].config_class(**({"k": 13} if "k" in fields else {}), **more)


def inputs(coder: Coder, n: int = 40) -> Tensor:
    return 3 * torch.randn(n, coder.d_in, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["scalar", "per_dimension", "whiten"])
@pytest.mark.parametrize("name", ["topk", "relu", "jumprelu", "gated"])
@pytest.mark.parametrize("shape", [(True, False, False), (True, False, True), (False, True, False)])
def test_the_function_survives_another_normalisation(name: str, kind: Any, shape: tuple[bool, bool, bool]) -> None:
    tied, skip, centre = shape
    more = {"skip": skip, "subtract_decoder_bias": centre, "latents": 13}
    source = normalised(make(settings(name, **more), tied), 1)
    into = normalised(make(settings(name, normalise=kind, **more), tied), 5)
    x = inputs(source)
    with torch.no_grad():
        if name == "gated":
            source.b_mag.normal_(std=0.5)  # type: ignore[operator]
        expected = source.decode(source.encode(x), x)
        assert not torch.allclose(into.decode(into.encode(x), x), expected, rtol=0.1)
        assert transfer(into, source) == 13
        torch.testing.assert_close(into.decode(into.encode(x), x), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(into.w_dec.norm(dim=1), torch.ones(13, dtype=torch.float64))


def test_with_the_same_normalisation_weights_are_copied_and_further_latents_stay_as_they_began() -> None:
    source = normalised(make(TopKConfig(latents=13, k=3)), 1)
    into = normalised(make(TopKConfig(latents=20, k=3)), 1)
    fresh = {name: p.detach().clone() for name, p in into.named_parameters()}
    assert transfer(into, source) == 13
    for name in ("w_enc", "b_enc", "w_dec"):
        assert torch.equal(getattr(into, name)[:13], getattr(source, name))
        assert torch.equal(getattr(into, name)[13:], fresh[name][13:])
    assert torch.equal(into.b_dec, source.b_dec)


def test_a_prefix_of_a_nested_dictionary_and_nothing_else_that_is_shorter() -> None:
    nested = normalised(make(MatryoshkaConfig(latents=13, k=3, groups=(2, 4, 7))), 1)
    into = normalised(make(TopKConfig(latents=6, k=3)), 1)
    refuse(into, nested, "nested")
    transfer(into, nested)
    assert torch.equal(into.w_dec, nested.w_dec[:6])
    for source, message in (
        (nested, "5 of the 13 latents of RUN are no dictionary: its prefixes are 2, 6, 13"),
        (make(TopKConfig(latents=13, k=3)), "it has no prefixes"),
        (make(TopKConfig(latents=5, k=3), tied=True), "output width: found 6, expected 5"),
        (make(TopKConfig(latents=5, k=3, skip=True)), "skip connection: found True"),
        (make(settings("gated", latents=5)), "gated"),
    ):
        with pytest.raises(UsageError, match=message):
            refuse(make(TopKConfig(latents=5, k=3)), source, "RUN")


def test_thresholds_keep_the_frequency_of_every_latent() -> None:
    """Batches of different strength, so that one threshold for all would not."""
    source = normalised(make(BatchTopKConfig(latents=13, k=3), dtype=torch.float32), 1)
    assert isinstance(source, BatchTopK)
    source.threshold.fill_(1.0)
    g = torch.Generator().manual_seed(3)
    batches = [scale * torch.randn(30, 6, generator=g) for scale in (1.0, 3.0, 9.0)]
    theta = frequency_thresholds(source, batches)
    source.train()
    selected = sum(source.encode(x).dense() > 0 for x in batches[:1]).sum(0)  # type: ignore[union-attr]
    for x in batches[1:]:
        selected = selected + (source.encode(x).dense() > 0).sum(dim=0)
    source.eval()
    pre = np.concatenate([(source.normalise_input(x) @ source.w_enc.T + source.b_enc).detach() for x in batches])
    np.testing.assert_array_equal((pre > theta.numpy()).sum(axis=0), selected.numpy())
    assert 0 < float(theta.min()) < float(theta.max())
    into = normalised(make(JumpReLUConfig(latents=13), dtype=torch.float32), 1)
    assert isinstance(into, JumpReLU)
    transfer(into, source, batches)
    torch.testing.assert_close(into.log_threshold.exp(), theta)


def test_distances_are_cosines() -> None:
    start, end = make(TopKConfig(latents=13, k=3)), make(TopKConfig(latents=13, k=3))
    with torch.no_grad():
        end.w_dec[:6].neg_()
        end.w_enc[0] = torch.roll(end.w_enc[0], 1)
    found = distances(start, end, 13)
    assert found["latents"] == 13
    assert found["w_dec"]["median"] == pytest.approx(1)
    assert found["w_dec"]["p05"] == pytest.approx(-1)
    assert found["w_dec"]["below_0.9"] == pytest.approx(6 / 13)
    assert found["w_enc"]["below_0.9"] == pytest.approx(1 / 13)
    assert distances(start, end, 1)["w_dec"]["median"] == pytest.approx(-1)
