"""A plan from packaged facts: no network, no weights, no cache; the numbers of a checkpoint of the same shape."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.harvest import facts
from sparse_pipeline.harvest.config import HarvestConfig, cache_path
from sparse_pipeline.harvest.plan import HarvestPlan, plan
from sparse_pipeline.harvest.prepare import cost, identity_of, layout, prepare_plan
from sparse_pipeline.resolve import resolve
from sparse_pipeline.shared.cache import CacheWriter
from sparse_pipeline.shared.config.settings import presets
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.folding import folded

GEMMAS = sorted(name for name in presets() if name.startswith("gemma-"))
CTX = 16


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network at all, and an empty working folder. The hub's cache on this machine holds none of these models."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the plan used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)


def settings_of(preset: str, **changes: Any) -> HarvestConfig:
    sets = ["harvest.device=cpu", *(f"harvest.{key}={value}" for key, value in changes.items())]
    settings: HarvestConfig = resolve([preset], sets, here=False).harvest
    return settings


def planned(preset: str, **changes: Any) -> HarvestPlan:
    return plan(settings_of(preset, **changes))


@pytest.fixture(scope="module")
def plans() -> dict[str, HarvestPlan]:
    """Plans by their settings: presets that differ in their training alone share one."""
    return {}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("preset", GEMMAS)
def test_every_packaged_gemma_is_planned_without_a_network(
    preset: str, tmp_path: Path, plans: dict[str, HarvestPlan]
) -> None:
    """Rows, bytes and parameters in closed form, from the published shape of each model."""
    settings = settings_of(preset)
    if repr(settings) not in plans:
        plans[repr(settings)] = plan(settings)
    found = plans[repr(settings)]
    document, config = found.to_dict(), resolve([preset], here=False).harvest
    # d, layers, MLP width, heads, key-value heads, head width, vocabulary, and whether queries and keys have norms
    shape = {
        "google/gemma-2-2b": (2304, 26, 9216, 8, 4, 256, 256_000, False),
        "google/gemma-3-270m": (640, 18, 2048, 4, 1, 256, 262_144, True),
    }[config.model]
    d, n_layers, ffn, heads, kv, head, vocab, qk_norms = shape
    assert config.tokens is not None
    rows = -(-config.tokens // config.ctx) * config.ctx
    assert document["rows"] == rows
    stored = -(-rows // found.layout.shard_rows) * found.layout.shard_rows  # the last shard is written whole
    assert document["sites"].keys() == set(config.sites)
    assert all(site["shape"] == [rows, d] for site in document["sites"].values())
    acts = len(config.sites) * d * 2
    tokens = 4 + 4 + 2 + 1  # token, document, position in it, flags
    checksums = 4 * (len(config.sites) + 4) * document["shards"]  # four bytes at the end of every file
    assert document["bytes"] == document["bytes_to_write"] == (acts + tokens) * stored + checksums
    weights = d * head * (2 * heads + 2 * kv) + 3 * d * ffn
    layer = weights + 4 * d + (2 * head if qk_norms else 0)
    assert document["model"]["parameters"] == vocab * d + n_layers * layer + d
    attention = 2 * 2 * heads * head * config.ctx
    last = max(int(site[6:8]) for site in config.sites)
    below = (last + 1) * (2 * weights + attention)
    assert document["model"]["flops_per_token"] == pytest.approx(below, rel=1e-3)
    whole = n_layers * (2 * weights + attention) + 2 * d * vocab
    assert document["model"]["forward_share"] == pytest.approx(below / whole, rel=1e-3)
    assert (document["planned_from"], document["dataset_found"], document["dataset_counted"]) == (
        "packaged facts", False, False,
    )  # fmt: skip
    text = str(found)
    assert f"note  planned from packaged facts of {config.model}: its checkpoint was not found" in text
    assert "the dataset was not counted" in text
    assert not list(tmp_path.iterdir())
    if preset == "gemma-2-2b-layer8":
        page = (Path(__file__).parents[2] / "docs/gemma.md").read_text(encoding="utf-8")
        free = re.sub(r"[\d.]+ GB free( +NOT ENOUGH)?", "74.7 GB free", text)
        assert folded(free, 80) in page, "the printed plan is out of date"


@pytest.mark.parametrize("preset", ["gemma-2-2b-layer8"])
@pytest.mark.usefixtures("alone")
def test_a_text_of_the_users_own_is_not_counted_without_the_tokenizer(preset: str, texts_file: Path) -> None:
    found = planned(preset, dataset=texts_file)
    assert found.sources.dataset
    assert not found.counted
    assert "was not looked up" not in str(found)
    with pytest.raises(UsageError, match="requires the tokenizer of google/gemma-2-2b"):
        planned(preset, dataset=texts_file, tokens="null")


def config_for(model: str, texts: Path, out: Path, **changes: Any) -> HarvestConfig:
    settings: dict[str, Any] = {
        "model": model, "dataset": str(texts), "sites": ("layer_01.resid_mid", "layer_01.mlp_out"), "tokens": 45 * CTX,
        "ctx": CTX, "batch_tokens": 8 * CTX, "shard_rows": 8 * CTX, "cache_dir": out, "device": "cpu", "name": "c",
    }  # fmt: skip
    return HarvestConfig(**{**settings, **changes})


@pytest.fixture
def tiny(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub name of a model whose packaged facts are the config.json of a checkpoint on disk."""
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(facts, "packaged_models", lambda: {"org/tiny": config})
    return "org/tiny"


@pytest.mark.usefixtures("alone")
def test_the_numbers_are_those_of_a_checkpoint_of_the_same_shape(
    tiny: str, tiny_model: Path, texts_file: Path, tmp_path: Path
) -> None:
    ours = plan(config_for(tiny, texts_file, tmp_path)).to_dict()
    real = plan(config_for(str(tiny_model), texts_file, tmp_path)).to_dict()
    assert (ours.pop("planned_from"), real.pop("planned_from")) == ("packaged facts", "checkpoint")
    assert not ours["dataset_counted"]
    assert (len(ours.pop("notes")), len(real.pop("notes"))) == (1, 0)
    for document in (ours, real):
        document.pop("free_disk")
    assert ours == real


@pytest.mark.usefixtures("alone")
def test_a_cache_of_that_model_is_no_conflict(tiny: str, tmp_path: Path) -> None:
    """Its commits are known to the cache alone; everything else is compared."""
    config = config_for(tiny, Path("some/dataset"), tmp_path)
    job, sources = prepare_plan(config)
    assert (sources.facts, sources.dataset) == (True, False)
    sites, widths, _ = cost(job)
    identity = identity_of(job)
    identity["resolved"] |= {"model_revision": "a" * 40, "dataset": "b" * 40}
    with CacheWriter.create(cache_path(config), layout(job, sites, widths), identity, {}):
        pass
    assert not plan(config).conflicts
    assert plan(config_for(tiny, Path("some/dataset"), tmp_path, separator="none")).to_dict()["rows"] == 45 * CTX


def test_a_checkpoint_that_is_here_is_used(tiny: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(tiny, Path("some/dataset"), tiny_model)
    assert facts.facts_needed(config) is not None
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, **_: f"/hub/{repo}/{name}")
    assert facts.facts_needed(config) is None
    (tiny_model.parent / "org").mkdir(exist_ok=True)
    monkeypatch.undo()
    assert facts.facts_needed(config_for(str(tiny_model), Path("some/dataset"), tiny_model)) is None


def test_a_dataset_whose_hub_does_not_answer_is_a_note(tiny_model: Path, tmp_path: Path) -> None:
    found = plan(config_for(str(tiny_model), Path("some/dataset"), tmp_path))
    assert found.to_dict()["planned_from"] == "checkpoint"
    assert found.notes == ["some/dataset was not looked up on its hub: the plan assumes that it has enough text"]


def test_an_unknown_model_keeps_its_error(texts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot load 'no-such-org/no-such-model'"):
        plan(config_for("no-such-org/no-such-model", texts_file, tmp_path))
