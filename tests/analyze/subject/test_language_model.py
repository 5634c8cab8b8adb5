"""Where the model of a cache is found, and which of its tensors unembed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_pipeline.analyze.subject.language_model import load_unembedding
from sparse_pipeline.models.folder import model_folder


def test_the_demo_models_unembedding_is_its_tied_embedding_and_gemmas_gain() -> None:
    folder = model_folder("demo")
    assert folder is not None
    tensors = load_file(folder / "model.safetensors")
    found = load_unembedding(folder, 128)
    assert found is not None
    assert torch.equal(found.weight, tensors["model.embed_tokens.weight"])
    torch.testing.assert_close(found.gain, tensors["model.norm.weight"].float() + 1)
    assert load_unembedding(folder, 64) is None  # another width: not this model's stream


def test_a_head_of_its_own_goes_before_the_embedding(tmp_path: Path) -> None:
    head, embedding = torch.randn(9, 4), torch.randn(9, 4)
    save_file({"lm_head.weight": head, "model.embed_tokens.weight": embedding}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert model_folder(str(tmp_path)) == tmp_path
    found = load_unembedding(tmp_path, 4)
    assert found is not None
    assert torch.equal(found.weight, head)
    assert torch.equal(found.gain, torch.ones(4))


def test_sharded_checkpoints(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.randn(9, 4)}, tmp_path / "a.safetensors")
    save_file({"model.norm.weight": torch.full((4,), 2.0)}, tmp_path / "b.safetensors")
    names = {"model.embed_tokens.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = load_unembedding(tmp_path, 4)
    assert found is not None
    assert found.gain.tolist() == [2.0] * 4


@pytest.mark.parametrize("name", [None, "no/such-model", "/no/such/folder", "./nothing", "a/b/c", "bad name!"])
def test_a_model_that_is_not_here_is_no_error(name: str | None) -> None:
    assert model_folder(name) is None
    assert load_unembedding(model_folder(name), 8) is None


def test_a_broken_checkpoint_gives_no_lens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    assert load_unembedding(tmp_path, 4) is None


def test_the_demo_model_is_found_beside_a_users_own_harvest(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "harvest").mkdir()
    (tmp_path / "harvest" / "__init__.py").write_text("raise RuntimeError('the user\\'s own')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = model_folder("demo")
    assert found is not None
    assert found.resolve() == (root / "harvest" / "demo" / "model").resolve()
