from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_pipeline.shared.coders import build_coder, load_coder, save_coder
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.errors import DataError
from tests.sealed import reseal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = MatryoshkaConfig(latents=16, k=2, skip=True)
    coder = build_coder(config, 5, 4, tied=False, generator=torch.Generator().manual_seed(0))
    coder.set_normalisation(
        SiteMoments(torch.ones(5), torch.full((5,), 4.0)), SiteMoments(torch.zeros(4), torch.ones(4))
    )
    coder.since_fired.fill_(7)
    save_coder(coder, tmp_path / "final", {"source": "layer_00.resid_mid"})
    return tmp_path


def test_a_coder_comes_back_with_its_bits(folder: Path) -> None:
    coder = load_coder(folder)  # a run folder stands for its final/
    x = torch.randn(6, 5)
    again = load_coder(folder / "final")
    assert coder.config == MatryoshkaConfig(latents=16, k=2, skip=True)
    assert not coder.training
    assert coder.is_transcoder
    assert coder.input_scale.tolist() == [2.0] * 5
    assert torch.equal(coder.decode(coder.encode(x), x), again.decode(again.encode(x), x))
    assert not coder.since_fired.any()  # training's own counters stay in checkpoints


def test_missing_and_damaged_coders_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no finished coder"):
        load_coder(folder / "elsewhere")
    weights = folder / "final" / "coder.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"coder\.safetensors is damaged: sha256"):
        load_coder(folder)
    weights.unlink()
    with pytest.raises(DataError, match="is missing"):
        load_coder(folder)


def test_weights_that_do_not_fit_are_listed(folder: Path) -> None:
    path = folder / "final" / "config.json"
    reseal(path, lambda document: document["coder"].update(latents=24))
    with pytest.raises(DataError, match=r"w_enc: found \(16, 5\), expected \(24, 5\)"):
        load_coder(folder)


def test_a_newer_format_or_an_unknown_architecture_is_refused(folder: Path) -> None:
    path = folder / "final" / "config.json"
    sound = path.read_bytes()
    for change, message in (
        ({"format_version": 99}, "format version 99, expected 2"),
        ({"coder": {"architecture": "other"}}, "unknown architecture 'other'"),
        ({"d_in": -1}, "is not of this format: d_in"),
        ({"tied": 1}, "is not of this format: tied"),
    ):
        reseal(path, lambda document, change=change: document.update(change))
        with pytest.raises(DataError, match=message):
            load_coder(folder)
        path.write_bytes(sound)
    path.write_text("{}")
    with pytest.raises(DataError, match="has format version None, expected 2"):
        load_coder(folder)
