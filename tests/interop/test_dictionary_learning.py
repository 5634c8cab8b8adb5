"""dictionary_learning loads what we write, with our codes, and what it saves comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparse_pipeline as sp
from sparse_pipeline.exchange.export import Wanted, export
from tests.exchange import planted as p
from tests.interop.peers import peer

utils = peer("dictionary_learning.utils")
dictionary = peer("dictionary_learning.dictionary")

ALL = ("topk", "matryoshka-topk", "batchtopk", "matryoshka-batchtopk", "relu", "jumprelu", "gated")


@torch.no_grad()
def theirs(coder: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    codes = coder.encode(x)
    return codes.double().numpy(), coder.decode(codes).double().numpy()


@pytest.mark.parametrize("architecture", ALL)
def test_out(architecture: str, x: torch.Tensor, tmp_path: Path) -> None:
    coder = p.planted(architecture, normalise="whiten")
    run = p.save(coder, tmp_path / "run")
    out = export([run], Wanted(to="dictionary-learning", out=tmp_path / "out")).out
    loaded, _ = utils.load_dictionary(str(out), device="cpu")
    p.assert_same(theirs(loaded, x), p.outputs(coder, x))


@pytest.mark.parametrize(
    "kind",
    ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
     "MatryoshkaBatchTopKSAE"],
)  # fmt: skip
def test_in(kind: str, x: torch.Tensor, tmp_path: Path) -> None:
    cls = getattr(utils, kind, None) or getattr(dictionary, kind)
    extra = {"k": p.K} if "TopK" in kind else {}
    if "Matryoshka" in kind:
        extra["group_sizes"] = [16, p.F - 16]
    coder = cls(p.D, p.F, **extra)
    with torch.no_grad():
        for value in coder.parameters():
            value.copy_(torch.randn_like(value) * 0.4)
        if "TopK" in kind:
            coder.threshold.fill_(0.8)
    torch.save(coder.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": kind, "layer": 1, "lm_name": "EleutherAI/pythia-70m", **extra}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    loaded, _ = utils.load_dictionary(str(tmp_path), device="cpu")
    p.assert_same(p.outputs(sp.load_coder(tmp_path), x), theirs(loaded, x), tolerance=2e-5)
