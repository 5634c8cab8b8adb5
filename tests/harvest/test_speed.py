"""What makes a harvest quick must not change what it finds: compiling, batch sizes, attention paths, back-pressure."""

from __future__ import annotations

import dataclasses
import functools
import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.harvest import batch_size
from sparse_pipeline.harvest.config import cache_path
from sparse_pipeline.harvest.disk import Disk
from sparse_pipeline.harvest.forward import Forward
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.prepare import prepare
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.harvest.stages import STAGES
from sparse_pipeline.models.bodies import body_of
from sparse_pipeline.models.capture import CompiledReader, SiteReader, check_attention
from sparse_pipeline.models.families import FAMILIES
from sparse_pipeline.models.site_names import format_site
from sparse_pipeline.models.sites import resolve_sites
from sparse_pipeline.shared.cache import CacheWriter, open_cache
from sparse_pipeline.shared.cache.verify import verify_cache
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import UsageError
from tests.harvest.conftest import CTX
from tests.harvest.test_capture import IDS, LAYERS, random_model, read_sites
from tests.harvest.test_run import config_for, contents

QUICK = functools.partial(torch.compile, backend="aot_eager")
"""Traces and cuts the graph as the real one does, but generates no code: seconds instead of a minute."""


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gpt_neox", "olmo2"])
def test_compiled_sites_are_the_sites_in_one_graph(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", QUICK)
    model = random_model(family)
    kinds = [kind for kind in FAMILIES[family].kinds_of(model.config) if kind != "resid_post"]
    names = tuple(format_site(LAYERS - 2, kind) for kind in kinds)
    expected = read_sites(model, names)
    torch._dynamo.utils.counters.clear()
    with CompiledReader(model, body_of(model), resolve_sites(names, model)) as reader:
        for ids in (IDS, IDS.flip(0)):
            found: dict[str, Tensor] = {}
            reader.read(ids, None, lambda name, value, found=found: found.__setitem__(name, value.clone()))
            for name in names:
                torch.testing.assert_close(found[name], expected[name] if ids is IDS else expected[name].flip(0))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_model_computes_nothing_after_the_last_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products in the graph: all of layer 0, and of layer 1 the attention's; no MLP, no later layer."""
    from torch._dynamo.backends.common import aot_autograd

    products: list[str] = []

    def count(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        products.extend(str(node.target) for node in graph.graph.nodes if "mm" in str(node.target))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=aot_autograd(fw_compiler=count)))
    model = random_model("gemma2")
    with CompiledReader(model, body_of(model), resolve_sites(("layer_01.resid_mid",), model)) as reader:
        reader.read(IDS, None, lambda _name, _value: None)
    assert sum("bmm" not in name for name in products) == 7 + 4
    assert sum("bmm" in name for name in products) == 2 + 2


@pytest.mark.parametrize("changes", [{}, {"cross_document_attention": False}, {"packing": "document"}])
def test_a_compiled_harvest(
    tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Equal numbers, one graph: also where the last batch is short, and where it holds padding."""
    monkeypatch.setattr(torch, "compile", QUICK)
    changes = {"tokens": 21 * CTX, **changes}
    plain = open_cache(harvest(config_for(tiny_model, texts_file, tmp_path, **changes)).path)
    torch._dynamo.utils.counters.clear()
    compiled = open_cache(harvest(config_for(tiny_model, texts_file, tmp_path, compile="on", **changes)).path)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    np.testing.assert_array_equal(plain.tokens, compiled.tokens)
    rows = np.flatnonzero(plain.flags.reshape(-1) != 4)
    for site in plain.sites:
        torch.testing.assert_close(
            compiled.rows(site, rows).float(), plain.rows(site, rows).float(), rtol=2**-7, atol=1e-3
        )
    assert compiled.config["resolved"]["compiled"] is True


def test_a_model_that_is_no_single_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", QUICK)
    model = random_model("llama")
    model.model.layers[0].mlp.register_forward_hook(lambda *_: torch._dynamo.graph_break())  # type: ignore[union-attr,index]
    sites = resolve_sites(("layer_01.mlp_out",), model)
    with CompiledReader(model, body_of(model), sites) as reader, pytest.raises(UsageError) as caught:
        reader.read(IDS, None, lambda _name, _value: None)
    assert "does not compile as one graph" in caught.value.message
    assert caught.value.hint == "--set harvest.compile=off"


def test_a_wrong_attention_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = random_model("llama")
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    body = body_of(model)
    sites = resolve_sites(("layer_00.mlp_out",), model)
    right = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with SiteReader(model, body, sites) as reader:
        check_attention(reader, body, 2, 96, 16, torch.device("cpu"))
        assert model.config._attn_implementation == "sdpa"

        def blunt(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:  # what leaving out a scale would do
            return right(module, query * 0.3, *args, **kwargs)

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", blunt)
        with pytest.raises(UsageError, match=r"at layer_00.mlp_out sdpa differs by .*% from eager"):
            check_attention(reader, body, 2, 96, 16, torch.device("cpu"))


def test_a_path_without_soft_caps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the model's own cap of 50 this path differs from eager by less than rounding."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.gemma2 import modeling_gemma2

    model = random_model("gemma2")
    body = body_of(model)
    with torch.no_grad():
        for layer in body.layers:  # type: ignore[union-attr]
            layer.self_attn.q_proj.weight.mul_(50)  # type: ignore[union-attr]
    attention = body.layers[0].self_attn  # type: ignore[union-attr,index]
    assert attention.attn_logit_softcapping == 50  # type: ignore[union-attr]
    eager = modeling_gemma2.eager_attention_forward

    def path(keep: bool) -> Any:
        def attend(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            _mask: Any,
            softcap: float | None = None,
            **kwargs: Any,
        ) -> Any:
            n = query.shape[2]
            far = torch.ones(n, n, dtype=torch.bool).tril(-(kwargs["sliding_window"] or n))
            causal = -1e9 * (torch.ones(n, n).triu(1) + far)  # a path of this name is given no mask in eager's form
            return eager(module, query, key, value, causal[None, None], softcap=softcap if keep else None, **kwargs)

        return attend

    sites = resolve_sites(("layer_00.attn_out",), model)
    for cls in (type(model), type(body)):
        monkeypatch.setattr(cls, "_supports_sdpa", True)
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    with SiteReader(model, body, sites) as reader:
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", path(keep=True))
        check_attention(reader, body, 2, 96, 16, torch.device("cpu"))
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", path(keep=False))
        with pytest.raises(UsageError, match=r"at layer_00.attn_out sdpa differs by .*% from eager"):
            check_attention(reader, body, 2, 96, 16, torch.device("cpu"))
    assert attention.attn_logit_softcapping == 50  # type: ignore[union-attr]


def test_batch_size_by_memory(
    tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tiny_model, texts_file, tmp_path, batch_tokens=None)
    job = prepare(config)
    numbers = (8 * 24 + 3 * 48 + 3 * 2 * CTX) * 4
    assert batch_size.estimate(job, available=1 << 50) == 8192
    assert batch_size.estimate(job, available=4 * numbers * 3000) == 2048
    assert batch_size.estimate(job, available=0) == CTX
    monkeypatch.setattr(batch_size, "MOST_ON_CPU", 4 * CTX)
    result = harvest(config)
    before = contents(result.path)
    assert open_cache(result.path).config["resolved"]["sequences_per_call"] == 4
    # on another day there is more memory; the cache goes on with what it was begun with
    monkeypatch.setattr(batch_size, "MOST_ON_CPU", 8 * CTX)
    (result.path / "manifest.json").unlink()
    (result.path / "commits" / "000002.json").unlink()
    assert not plan(config).conflicts
    assert harvest(config).shards_written == 1
    assert contents(cache_path(config)) == before


def test_a_slow_disk_holds_the_model_back(
    tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no time are there more buffers, or more units computed and unwritten, than the settings allow."""
    config = config_for(
        tiny_model, texts_file, tmp_path, buffers=2, writers=1, shard_rows=2 * CTX, batch_tokens=2 * CTX
    )
    made = computed = written = ahead = 0
    make, compute, write = Disk.allocate, Forward.compute, CacheWriter.write_shard

    def counted_make(self: Disk) -> Any:
        nonlocal made
        made += 1
        return make(self)

    def counted_compute(self: Forward, *args: Any) -> Any:
        nonlocal computed, ahead
        computed += 1
        ahead = max(ahead, computed - written)
        return compute(self, *args)

    def slow_write(self: CacheWriter, *args: Any, **kwargs: Any) -> Any:
        nonlocal written
        time.sleep(0.05)
        record = write(self, *args, **kwargs)
        written += 1
        return record

    monkeypatch.setattr(Disk, "allocate", counted_make)
    monkeypatch.setattr(Forward, "compute", counted_compute)
    monkeypatch.setattr(CacheWriter, "write_shard", slow_write)
    said = io.StringIO()
    result = harvest(config, Console(stream=said, interval=0.0))
    assert (made, computed, written) == (2, 24, 24)
    assert ahead <= 3  # two buffers, and one whose commit is counted a moment after it was made
    assert max(result.stages, key=result.stages.__getitem__) == "write"
    assert sum(result.stages.values()) == pytest.approx(1.0)
    line = said.getvalue().splitlines()[-1]
    assert all(f"{stage} " in line for stage in STAGES)
    assert "B/s" in line


def test_statistics_summed_beside_the_model_change_no_chunk(
    tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, here on the CPU: shards of two batches, and a site in fp8 that the writers measure."""
    sites = ("layer_01.resid_mid", "layer_01.mlp_out")
    config = config_for(
        tiny_model,
        texts_file,
        tmp_path / "a",
        sites=sites,
        storage_of={sites[1]: "fp8"},
        shard_rows=4 * CTX,
        batch_tokens=2 * CTX,
    )
    plain = harvest(config)
    begin, given = Forward.__init__, []

    def measuring(self: Forward, job: Any, reader: Any, stages: Any, _measured: Any = ()) -> None:
        begin(self, job, reader, stages, open_cache(plain.path).layout.sites)

    write = CacheWriter.write_shard

    def noted(self: CacheWriter, *args: Any, **kwargs: Any) -> Any:
        given.append(set(kwargs["stats"]))
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Forward, "__init__", measuring)
    monkeypatch.setattr(CacheWriter, "write_shard", noted)
    found = harvest(dataclasses.replace(config, cache_dir=tmp_path / "b"))
    assert given == [{sites[0]}] * found.shards
    a, b = contents(plain.path), contents(found.path)
    assert {name: data for name, data in a.items() if str(name).startswith("arrays")} == {
        name: data for name, data in b.items() if str(name).startswith("arrays")
    }
    assert not verify_cache(found.path).problems
    for site in sites:
        one, other = open_cache(plain.path).stats(site).all, open_cache(found.path).stats(site).all
        assert one.n == other.n
        np.testing.assert_allclose(one.sum_sq, other.sum_sq, rtol=1e-12)
        assert one.sum_norm == pytest.approx(other.sum_norm, rel=1e-6)


def test_shards_of_a_unit_are_written_at_the_same_time(
    tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(
        tiny_model, texts_file, tmp_path, buffers=1, writers=4, shard_rows=CTX, batch_tokens=4 * CTX, tokens=12 * CTX
    )
    together, write = threading.Barrier(4, timeout=60), CacheWriter.write_shard
    missing, compute = [], Forward.compute
    writers: list[CacheWriter] = []
    create = CacheWriter.create

    def meeting(self: CacheWriter, *args: Any, **kwargs: Any) -> Any:
        together.wait()  # breaks unless all four shards of the unit are being written
        record = write(self, *args, **kwargs)
        together.wait()
        return record

    def counted(self: Forward, *args: Any) -> Any:
        assert together.n_waiting == 0  # the only buffer is free: every shard of the unit before is written
        missing.append(len(writers[0].missing_shards()))
        return compute(self, *args)

    def kept(*args: Any, **kwargs: Any) -> CacheWriter:
        writers.append(create(*args, **kwargs))
        return writers[-1]

    monkeypatch.setattr(CacheWriter, "create", kept)
    monkeypatch.setattr(CacheWriter, "write_shard", meeting)
    monkeypatch.setattr(Forward, "compute", counted)
    assert harvest(config).shards == 12
    assert missing == [12, 8, 4]
