"""Options of every architecture: k that moves during training, and the decoder's bias before the encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders import ARCHITECTURES, CoderConfig, build_coder
from sparse_pipeline.shared.coders.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.configs.base import StepContext
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.coders.topk import TopK, TopKConfig
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError
from tests.shared.coders.test_coders import make, rows


@pytest.mark.parametrize(
    "config",
    [
        TopKConfig(latents=13, k=2, k_start=10, k_steps=4),
        BatchTopKConfig(latents=13, k=2, k_start=10, k_steps=4),
        MatryoshkaConfig(latents=13, k=2, k_start=10, k_steps=4),
    ],
    ids=lambda config: config.architecture,
)
def test_k_moves_along_a_line_in_training_alone(config: CoderConfig) -> None:
    coder = make(config)
    assert isinstance(coder, TopK)
    with torch.no_grad():
        coder.b_enc.fill_(50.0)  # every pre-activation is positive
    u, _ = rows(coder)
    seen = []
    for step in (1, 2, 3, 4, 70):
        coder.begin_step(StepContext(0, step, 100))
        seen.append(coder.encode_normalised(u).l0().double().mean().item())
    assert seen == [8, 6, 4, 2, 2]
    coder.begin_step(StepContext(0, 1, 100))
    assert coder.eval().encode_normalised(u).l0().double().mean().item() == 2


def test_without_steps_k_takes_half_of_the_run() -> None:
    coder = make(TopKConfig(latents=13, k=2, k_start=12))
    assert isinstance(coder, TopK)
    seen = []
    for step in (5, 25, 50, 99):
        coder.begin_step(StepContext(0, step, 100))
        seen.append(coder.k)
    assert seen == [11, 7, 2, 2]


@pytest.mark.parametrize(
    ("settings", "message"), [({"k_start": 14}, "k_start"), ({"k_steps": 5}, "k_start"), ({"k": 0}, "k must be")]
)
def test_impossible_schedules_of_k_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(TopKConfig, {"latents": 13, "k": 3} | settings, "coder")


def centred(name: str, **more: Any) -> CoderConfig:
    fields = ARCHITECTURES[name].config_class.__dataclass_fields__
    return ARCHITECTURES[name].config_class(  # type: ignore[call-arg]
        latents=13, subtract_decoder_bias=True, **({"k": 3} if "k" in fields else {}), **more
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_subtracting_the_bias_is_a_shift_of_the_encoders_bias_and_folds(name: str) -> None:
    coder = make(centred(name), tied=True)
    plain = make(type(coder.config)(**{**vars(coder.config), "subtract_decoder_bias": False}), tied=True)
    state = coder.state_dict()
    plain.load_state_dict(state | {"b_enc": state["b_enc"] - state["w_enc"] @ state["b_dec"]})
    u, t = rows(coder)
    mine, theirs = coder.encode_normalised(u), plain.encode_normalised(u)
    if name != "gated":  # whose magnitudes do not see b_enc: the shift belongs to b_mag there
        torch.testing.assert_close(mine.dense(), theirs.dense(), rtol=1e-12, atol=1e-12)
    assert (mine.l0() > 0).any()
    moments = SiteMoments(torch.full((6,), 0.3, dtype=torch.float64), torch.full((6,), 4.0, dtype=torch.float64))
    for one in (coder, plain):
        one.set_normalisation(moments, moments)
    torch.testing.assert_close(coder.fold().b_enc, plain.fold().b_enc)
    sum(coder.losses(u, t, mine).values()).backward()  # type: ignore[union-attr]
    assert coder.b_dec.grad is not None


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_the_biass_gradient_passes_through_the_encoder(name: str) -> None:
    coder = make(centred(name), tied=True)
    coder.dead_after = 1
    coder.since_fired[7:] = 5  # AuxK is at work too
    u, t = rows(coder)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coder = coder

        def forward(self) -> Tensor:
            terms = coder.losses(u, t, coder.encode_normalised(u))
            assert "aux" in terms
            return terms["reconstruction"]

    def loss(b_dec: Tensor) -> Tensor:
        return torch.func.functional_call(Loss(), {"coder.b_dec": b_dec}, ())

    assert torch.autograd.gradcheck(loss, coder.b_dec.detach().clone().requires_grad_(), eps=1e-7, atol=1e-6)
    codes = coder.encode_normalised(u)
    pre = (u - coder.b_dec).detach().numpy() @ coder.w_enc.detach().numpy().T + coder.b_enc.detach().numpy()
    z = codes.dense().detach().numpy()
    np.testing.assert_allclose(z[z > 0], pre[z > 0], rtol=1e-12)


def test_a_transcoder_has_no_bias_to_subtract() -> None:
    with pytest.raises(ValueError, match="different spaces"):
        build_coder(centred("topk"), 6, 6, tied=False)
    with pytest.raises(ConfigError, match="different spaces"):
        validate(TopKConfig, {"subtract_decoder_bias": True, "input_transform": "rms"}, "coder")
