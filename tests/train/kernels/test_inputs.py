from __future__ import annotations

import pytest
import torch

from sparse_pipeline.train.kernels.inputs import normalise_rows
from tests.train.kernels.oracles import relative


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("rms_eps", [None, 1e-6])
@pytest.mark.parametrize("width", [7, 1500])
def test_rows_are_normalised(device: torch.device, width: int, rms_eps: float | None, each: bool) -> None:
    x, mean = (torch.randn(3, width) * 5).bfloat16(), torch.randn(width)
    scale = torch.rand(width) + 0.5 if each else torch.tensor(1.7)
    out, norm = torch.full((3, width), float("nan"), device=device), torch.zeros(3, device=device)
    normalise_rows(x.to(device), mean=mean.to(device), scale=scale.to(device), out=out, rms_eps=rms_eps, norm=norm)
    expected = x.double()
    if rms_eps is not None:
        expected = expected / (expected.square().mean(dim=1, keepdim=True) + rms_eps).sqrt()
    expected = (expected - mean.double()) / scale.double()
    assert relative(out, expected) < 1e-6
    assert relative(norm, expected.norm(dim=1)) < 1e-6
