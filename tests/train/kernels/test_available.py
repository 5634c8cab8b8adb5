from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.train import kernels
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.step.fused import refusal

CPU = torch.device("cpu")


def config(fused: str, **settings: object) -> TrainConfig:
    return TrainConfig(cache=Path("c"), coder=TopKConfig(latents=16, k=2), fused=fused, **settings)  # type: ignore[arg-type]


def test_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    assert kernels.unavailable(CPU) == "the device is cpu, not cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.unavailable(CPU) is None
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    reason = kernels.unavailable(torch.device("cuda"))
    assert reason is not None
    assert "Triton is not installed" in reason


def test_a_machine_without_a_c_compiler_trains_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    reason = kernels.unavailable(torch.device("cuda"))
    assert reason is not None
    assert "no C compiler" in reason


def test_auto_leaves_a_cpu_to_autograd() -> None:
    coder = build_coder(TopKConfig(latents=16, k=2), 4, 4, tied=True)
    assert refusal(config("auto"), coder, CPU) == "the device is cpu"
    assert refusal(config("off"), coder, CPU) == "train.fused is off"


def test_on_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    coder = build_coder(TopKConfig(latents=16, k=2), 4, 4, tied=True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match=r"train.fused: on, .* cannot train run topk: the device is cpu, not cuda"):
        refusal(config("on"), coder, CPU)


def test_frozen_parameters_are_refused(device: torch.device) -> None:
    coder = build_coder(TopKConfig(latents=16, k=2), 4, 4, tied=True)
    with pytest.raises(UsageError, match=r"frozen parameters \(w_dec\)"):
        refusal(config("on", freeze=("w_dec",)), coder, device)
    assert refusal(config("on"), coder, device) is None
