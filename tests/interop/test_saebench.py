"""SAEBench takes what the loader of an export gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_pipeline.exchange.export import Wanted, export
from tests.exchange import planted as p
from tests.interop.peers import peer

peer("sae_lens")
general = peer("sae_bench.sae_bench_utils.general_utils")


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
def test_selected_saes(architecture: str, x: torch.Tensor, tmp_path: Path) -> None:
    coder = p.planted(architecture)
    run = p.save(coder, tmp_path / "run")
    out = export([run], Wanted(to="saebench", out=tmp_path / "out", model="google/gemma-2-2b")).out
    names: dict[str, Any] = {"__file__": str(out / "saebench_saes.py"), "__name__": "saebench_saes"}
    exec((out / "saebench_saes.py").read_text(), names)
    ((name, sae),) = names["selected_saes"]()
    _, found, _ = general.load_and_format_sae(name, sae, "cpu")
    assert (found.cfg.hook_layer, found.cfg.hook_name, found.cfg.model_name) == (
        1, "blocks.1.hook_resid_mid", "google/gemma-2-2b",
    )  # fmt: skip
    codes, y = p.outputs(coder, x)
    with torch.no_grad():
        theirs = found.encode(x)
        theirs = (theirs.to_dense() if theirs.is_sparse else theirs).double().numpy()
        np.testing.assert_allclose(found(x).double().numpy(), y, atol=1e-4)
    if architecture != "topk":
        assert general.check_decoder_norms(found.W_dec.data)
        codes = codes * coder.fold().w_dec.norm(dim=1).numpy()
    np.testing.assert_allclose(theirs, codes, atol=1e-5 * max(1, np.abs(codes).max()))
