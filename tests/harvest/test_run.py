"""The whole harvest on a tiny model: exactness, dry run, resume, bad inputs."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import sparse_pipeline
from sparse_pipeline.harvest.config import HarvestConfig, cache_path, content_settings
from sparse_pipeline.harvest.data.documents import Columns
from sparse_pipeline.harvest.data.files import DataFile
from sparse_pipeline.harvest.data.local import documents
from sparse_pipeline.harvest.data.pack import Block
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.harvest.forward import Forward
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.prepare import prepare
from sparse_pipeline.harvest.run import HarvestResult, harvest
from sparse_pipeline.models.families import FAMILIES
from sparse_pipeline.models.site_names import format_site
from sparse_pipeline.shared.cache import open_cache, verify_cache
from sparse_pipeline.shared.config.settings import to_dict, validate
from sparse_pipeline.shared.console import size
from sparse_pipeline.shared.errors import ConfigError, DataError, PipelineError, UsageError
from tests.harvest.conftest import CTX, make_texts
from tests.sealed import reseal

ALL_SITES = tuple(format_site(layer, kind) for layer in range(3) for kind in FAMILIES["gemma2"].kinds)


def config_for(tiny_model: Path, texts_file: Path, cache_dir: Path, **changes: Any) -> HarvestConfig:
    """48 sequences of 16 tokens in shards of 8: six shards."""
    base = HarvestConfig(
        model=str(tiny_model),
        dataset=str(texts_file),
        sites=("layer_01.resid_mid", "layer_01.mlp_out"),
        tokens=48 * CTX,
        ctx=CTX,
        batch_tokens=8 * CTX,
        shard_rows=8 * CTX,
        cache_dir=cache_dir,
        device="cpu",
    )
    return dataclasses.replace(base, **changes)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a cache, but for what says with which versions and commit it was made."""
    found = {}
    for file in sorted(path.rglob("*")):
        if not file.is_file():
            continue
        data = file.read_bytes()
        if file.name in ("plan.json", ".plan.json.copy", "manifest.json"):
            plain = {key: value for key, value in json.loads(data).items() if key not in ("provenance", "seal")}
            data = json.dumps(plain).encode()
        found[str(file.relative_to(path))] = data
    return found


def blocks_of(config: HarvestConfig) -> list[Block]:
    return list(prepare(config).blocks())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_site_equals_a_hook_on_the_plain_model(
    tiny_model: Path, texts_file: Path, tmp_path: Path, dtype: str
) -> None:
    """All Gemma-2 sites of all layers, in one pass: bit for bit what the uncut model computes on the same batches."""
    from transformers import AutoModelForCausalLM

    config = config_for(tiny_model, texts_file, tmp_path, sites=ALL_SITES, dtype=dtype, tokens=16 * CTX)
    cache = open_cache(harvest(config).path)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    seen: dict[str, torch.Tensor] = {}
    kinds = {
        "resid_pre": ("", "in"),
        "attn_in": (".input_layernorm", "out"),
        "attn_z": (".self_attn.o_proj", "in"),
        "attn_out": (".post_attention_layernorm", "out"),
        "resid_mid": (".pre_feedforward_layernorm", "in"),
        "mlp_in_nogain": (".pre_feedforward_layernorm", "norm"),
        "mlp_in": (".pre_feedforward_layernorm", "out"),
        "mlp_out": (".post_feedforward_layernorm", "out"),
        "resid_post": ("", "out"),
    }
    for layer in range(3):
        for kind, (path, side) in kinds.items():
            name = f"layer_{layer:02d}.{kind}"

            def hook(module: Any, args: Any, output: Any, name: str = name, side: str = side) -> None:
                if side == "norm":
                    x = args[0].float()
                    seen[name] = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.eps)).to(args[0].dtype)
                else:
                    seen[name] = (args[0] if side == "in" else output).clone()

            model.get_submodule(f"model.layers.{layer}{path}").register_forward_hook(hook)
    for start in range(0, 16, 8):
        ids = torch.from_numpy(cache.tokens[start : start + 8].astype(np.int64))
        with torch.no_grad():
            model(input_ids=ids)
        for name in ALL_SITES:
            rows = cache.rows(name, np.arange(start * CTX, (start + 8) * CTX))
            expected = seen[name].flatten(0, -2).to(torch.bfloat16)
            assert torch.equal(rows, expected), name
            assert rows.float().abs().mean() > 0.01


def test_demo_model_equals_a_hook_on_the_plain_model(texts_file: Path, tmp_path: Path) -> None:
    """The shipped checkpoint in float32, on other batches: within a rounding of bfloat16."""
    from transformers import AutoModelForCausalLM

    from sparse_pipeline.models.folder import DEMO_MODEL

    config = HarvestConfig(dataset=str(texts_file), tokens=8 * 128, cache_dir=tmp_path, device="cpu", dtype="float32")
    cache = open_cache(harvest(config).path)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    seen: dict[str, torch.Tensor] = {}
    block = model.model.layers[2]
    block.pre_feedforward_layernorm.register_forward_pre_hook(lambda _m, args: seen.update(resid_mid=args[0]))
    block.post_feedforward_layernorm.register_forward_hook(lambda _m, _a, out: seen.update(mlp_out=out))
    for s in range(8):
        with torch.no_grad():
            model(input_ids=torch.from_numpy(cache.tokens[s : s + 1].astype(np.int64)))
        for kind in ("resid_mid", "mlp_out"):
            found = cache.rows(f"layer_02.{kind}", np.arange(s * 128, (s + 1) * 128)).float()
            torch.testing.assert_close(found, seen[kind][0], rtol=2**-8, atol=1e-4)


def test_token_arrays_equal_a_plain_reimplementation(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    cache = open_cache(harvest(config_for(tiny_model, texts_file, tmp_path)).path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    stream = []
    for index, text in enumerate(make_texts(200)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*ids, tokenizer.eos_token_id] if ids else []
        stream += [(token, index, p, (2 if token == 1 else 0) | (8 if p == 0 else 0)) for p, token in enumerate(ids)]
    rows = []
    for s in range(48):
        body = stream[s * (CTX - 1) : (s + 1) * (CTX - 1)]
        rows += [(tokenizer.bos_token_id, body[0][1], body[0][2], 1), *body]
    expected = np.array(rows).reshape(48, CTX, 4)
    for i, array in enumerate((cache.tokens, cache.doc_id, cache.pos_in_doc, cache.flags)):
        np.testing.assert_array_equal(array, expected[:, :, i])
    carried = Tokenizer.from_file(str(cache.path / cache.manifest["extra"]["tokenizer"]))
    assert carried.decode(cache.tokens[0, 1:].tolist()) == tokenizer.decode(
        cache.tokens[0, 1:], skip_special_tokens=True
    )
    group = zarr.open_group(cache.path / "acts.zarr", mode="r")
    np.testing.assert_array_equal(group["tokens"][:], expected[:, :, 0])


def test_dry_run_writes_nothing_and_predicts_the_bytes(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    config = config_for(tiny_model, texts_file, tmp_path, tokens=45 * CTX)  # the last shard is short
    planned = plan(config)
    assert not list(tmp_path.iterdir())
    result = harvest(config)
    written = sum(file.stat().st_size for file in result.path.joinpath("acts.zarr").glob("*/c.*"))
    assert planned.to_dict()["bytes"] == written == result.bytes
    done = rf"{size(written)} of chunk files \(6 of 6 shards in \d+s, loading included; [\d.,k]+ rows/s from the first"
    assert re.search(done, str(result))
    assert (planned.to_dict()["rows"], planned.to_dict()["shards"]) == (45 * CTX, 6)
    assert plan(config).complete
    assert "layer_01.mlp_out" in str(planned)


def test_dry_run_counts_a_dataset_that_is_too_small(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    large = {"shard_rows": 256 * CTX, "batch_tokens": 256 * CTX}
    config = config_for(tiny_model, texts_file, tmp_path, tokens=10_000_000, **large)
    planned = plan(config)
    result = harvest(config)
    assert planned.counted
    assert planned.layout.n_seq == result.n_sequences < 10_000_000 // CTX
    assert planned.layout.bytes_on_disk() == result.bytes


def test_dry_run_knows_the_share_of_the_model(texts_file: Path) -> None:
    """Matrix products of the demo model, counted by hand."""
    planned = plan(HarvestConfig(device="cpu", dataset=str(texts_file), tokens=128))
    d, ffn, heads, kv, head, vocab, ctx = 128, 512, 4, 2, 32, 4096, 128
    attention = 2 * d * head * (2 * heads + 2 * kv) + 2 * 2 * heads * head * ctx
    layer = attention + 2 * 3 * d * ffn
    assert planned.flops_per_token == pytest.approx(3 * layer, rel=0.01)
    assert planned.flops_share == pytest.approx(3 * layer / (4 * layer + 2 * d * vocab), rel=0.01)
    assert planned.parameters == 1_509_504
    norm_and_layers = 3 * (d * head * (2 * heads + 2 * kv) + 3 * d * ffn + 4 * d) + d
    assert planned.model_bytes == pytest.approx(4 * (norm_and_layers + vocab * d), rel=0.001)
    assert HarvestConfig().tokens is not None
    assert HarvestConfig().tokens >= 250_000


def test_all_of_a_local_dataset(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    """`tokens: null`: every token of every document, the last sequence padded."""
    from transformers import AutoTokenizer

    config = config_for(tiny_model, texts_file, tmp_path, tokens=None, shard_rows=256 * CTX, batch_tokens=256 * CTX)
    result = harvest(config)
    cache = open_cache(result.path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lengths = [
        len(tokenizer(d.text, add_special_tokens=False)["input_ids"])
        for d in documents([DataFile(texts_file, "")], Columns("text"), Reading())
    ]
    n_text = sum(length + 1 for length in lengths if length)
    assert result.n_sequences == -(-n_text // (CTX - 1))
    assert result.n_tokens == n_text + result.n_sequences
    assert (cache.flags == 4).sum() == result.n_sequences * CTX - result.n_tokens
    assert torch.isfinite(cache.rows("layer_01.mlp_out", range(cache.n_rows))).all()


def test_padding_changes_no_other_row(tiny_model: Path, tmp_path: Path) -> None:
    text = "one two three four"
    for name, content in (
        ("short", text),
        ("long", text + " five six seven eight nine ten eleven twelve thirteen fourteen"),
    ):
        (tmp_path / f"{name}.txt").write_text(content)
    caches = {
        name: open_cache(
            harvest(
                config_for(
                    tiny_model, tmp_path / f"{name}.txt", tmp_path / name, tokens=CTX, separator="none", shard_rows=CTX
                )
            ).path
        )
        for name in ("short", "long")
    }
    n = int((caches["short"].flags != 4).sum())
    assert 4 < n < CTX
    np.testing.assert_array_equal(caches["short"].tokens[0, :n], caches["long"].tokens[0, :n])
    short, long = (caches[name].rows("layer_01.resid_mid", range(n)).float() for name in ("short", "long"))
    torch.testing.assert_close(short, long, rtol=2**-7, atol=1e-5)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tiny_model: Path, texts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> HarvestResult:
    """An uninterrupted harvest."""
    return harvest(config_for(tiny_model, texts_file, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("lost", [(0,), (3, 4), (5,), (0, 1, 2, 3, 4, 5)])
def test_resume_computes_what_is_missing_and_leaves_the_same_bytes(
    tiny_model: Path, texts_file: Path, tmp_path: Path, whole: HarvestResult, lost: tuple[int, ...]
) -> None:
    config = config_for(tiny_model, texts_file, tmp_path)
    path = cache_path(config)
    shutil.copytree(whole.path, path)
    (path / "manifest.json").unlink()
    for shard in lost:
        (path / "commits" / f"{shard:06d}.json").unlink()
        for file in path.glob(f"acts.zarr/*/c.{shard}.0"):
            file.write_bytes(b"torn") if shard % 2 else file.unlink()
    result = harvest(config)
    assert result.shards_written == len(lost)
    assert result.tokens_run == len(lost) * 8 * CTX
    assert contents(path) == contents(whole.path)
    again = harvest(config)
    assert (again.shards_written, again.n_tokens) == (0, whole.n_tokens)


def test_batches_of_several_shards_and_of_parts_of_one(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    """A unit of three shards is computed in one call; losing one of them changes no bit of the others or of itself."""
    for sequences in (24, 3):
        config = config_for(tiny_model, texts_file, tmp_path / str(sequences), batch_tokens=sequences * CTX)
        result = harvest(config)
        before = contents(result.path)
        (result.path / "manifest.json").unlink()
        (result.path / "commits" / "000004.json").unlink()
        assert harvest(config).shards_written == 1
        assert contents(result.path) == before


def test_data_that_ends_early_finishes_short_and_says_so(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text(" ".join(make_texts(12)))
    config = config_for(tiny_model, tmp_path / "t.txt", tmp_path / "cache")
    result = harvest(config)
    assert 8 < result.n_sequences < 48
    assert "ended after" in capsys.readouterr().err
    cache = open_cache(result.path)
    assert cache.n_seq == result.n_sequences
    before = contents(result.path)
    for also in ((), (0,)):  # killed before the manifest; killed with the first shard missing
        (result.path / "manifest.json").unlink()
        for shard in also:
            (result.path / "commits" / f"{shard:06d}.json").unlink()
        assert harvest(config).n_sequences == result.n_sequences
        assert contents(result.path) == before


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process (conftest.py)

_CHILD = """
import os, signal, sys
from pathlib import Path
import sparse_pipeline.shared.cache.files as files
from sparse_pipeline.harvest.config import HarvestConfig, content_settings
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.config.settings import load_yaml, validate

write, calls, fatal = files.write_all, 0, int(sys.argv[2])

def killed(descriptor, data):
    global calls
    calls += 1
    if calls == fatal:
        os.write(descriptor, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(descriptor, data)

files.write_all = killed
harvest(validate(HarvestConfig, load_yaml(Path(sys.argv[1]))))
"""


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_then_rerun_gives_the_same_bytes(
    tiny_model: Path, texts_file: Path, tmp_path: Path, root: Path, kills: int
) -> None:
    """Killed, each time in the middle of writing a file, then run to the end; against one that nobody disturbed.

    Which write is the last one differs from run to run: any moment must do.
    """
    changes: dict[str, Any] = {"tokens": 48 * CTX, "shard_rows": 2 * CTX, "batch_tokens": 4 * CTX, "buffers": 2}
    config = config_for(tiny_model, texts_file, tmp_path / "killed", **changes)
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps(to_dict(config)))
    commits = cache_path(config) / "commits"
    before = 0
    for fatal in random.choices(range(40, 70), k=kills):
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, str(settings), str(fatal)],
            cwd=root,
            env=ONE_THREAD,
            timeout=120,
            check=False,
        )
        assert child.returncode == -signal.SIGKILL
        assert list(cache_path(config).rglob("*.partial"))
        now = len(list(commits.glob("*.json")))
        assert before < now < 24
        before = now
    result = harvest(config)
    assert result.shards_written == 24 - before
    assert not list(result.path.rglob("*.partial"))
    undisturbed = harvest(config_for(tiny_model, texts_file, tmp_path / "undisturbed", **changes))
    assert contents(result.path) == contents(undisturbed.path)


def test_ctrl_c_keeps_what_is_committed(
    tiny_model: Path,
    texts_file: Path,
    tmp_path: Path,
    whole: HarvestResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sparse_pipeline.harvest.forward import Forward

    config = config_for(tiny_model, texts_file, tmp_path)
    compute, calls = Forward.compute, 0

    def interrupted(self: Forward, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return compute(self, *args)

    monkeypatch.setattr(Forward, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt, match="3 of 6 shards"):
        harvest(config)
    monkeypatch.undo()
    assert harvest(config).shards_written == 3
    assert contents(cache_path(config)) == contents(whole.path)


# --- bad inputs -------------------------------------------------------------------------------------------------------


def test_another_config_is_refused_field_by_field(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    config = config_for(tiny_model, texts_file, tmp_path, name="mine")
    path = harvest(config).path
    before = contents(path)
    other = dataclasses.replace(config, sites=("layer_01.resid_mid", "layer_01.attn_out"), separator="none")
    with pytest.raises(DataError) as caught:
        harvest(other)
    assert 'harvest.separator: the cache has "eos", this config has "none"' in caught.value.message
    assert 'the cache has "layer_01.mlp_out", this config has "layer_01.attn_out"' in caught.value.message
    assert "harvest.ctx" not in caught.value.message
    assert contents(path) == before
    assert any("harvest.separator" in line for line in plan(other).conflicts)
    assert "CONFLICT" in str(plan(other))
    assert not plan(config).conflicts


def test_a_changed_model_or_dataset_is_refused(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, texts = tmp_path / "model", tmp_path / "texts.jsonl"
    shutil.copytree(tiny_model, model)
    shutil.copy(texts_file, texts)
    config = config_for(model, texts, tmp_path / "cache", name="mine")
    path = harvest(config).path
    weights = load_file(model / "model.safetensors")
    save_file({name: w + 1 if "layers.1" in name else w for name, w in weights.items()}, model / "model.safetensors")
    with pytest.raises(DataError, match=r"resolved\.model_sha256"):
        harvest(config)
    shutil.copy(tiny_model / "model.safetensors", model)
    texts.write_text(texts.read_text().replace("function", "procedure"))
    with pytest.raises(DataError, match=r"resolved\.dataset"):
        harvest(config)
    # a dataset that changes behind a constant identity is caught by the tokens of the committed shards
    (path / "manifest.json").unlink()
    (path / "commits" / "000005.json").unlink()
    job = prepare(config)
    reseal(path / "plan.json", lambda plan: plan["config"]["resolved"].update(dataset=job.dataset.identity))
    with pytest.raises(DataError, match="has changed: shard 0"):
        harvest(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "./nowhere"}, "folder not found: ./nowhere"),
        ({"model": "no-such-org/no-such-model"}, "cannot load 'no-such-org/no-such-model'"),
        ({"dataset": "./nowhere.jsonl"}, "not found: ./nowhere.jsonl"),
        ({"sites": ("layer_07.resid_mid",)}, "the model has 3 layers"),
        ({"sites": ("layer_01.resid",)}, "no 'resid'"),
        ({"ctx": 128, "shard_rows": 0}, "found 128, but .* at most 64 tokens"),
        ({"attention": "sdpa"}, "cannot load"),
        ({"text_column": "txt"}, "no column 'txt'; did you mean 'text'"),
    ],
)
def test_bad_inputs(tiny_model: Path, texts_file: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = config_for(tiny_model, texts_file, tmp_path, **changes)
    with pytest.raises(UsageError, match=message) as caught:
        harvest(config)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this machine has 0 CUDA devices"):
        harvest(config_for(tiny_model, texts_file, tmp_path, device="cuda"))


@pytest.mark.parametrize("content", ["", '{"text": ""}\n{"text": ""}\n'])
def test_an_empty_dataset(tiny_model: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.jsonl").write_text(content)
    config = config_for(tiny_model, tmp_path / "empty.jsonl", tmp_path / "cache")
    for act in (harvest, plan):
        with pytest.raises(UsageError, match="holds no text"):
            act(config)
    with pytest.raises(UsageError, match="holds no text"):
        harvest(dataclasses.replace(config, tokens=None))


@pytest.mark.parametrize("line", ['{"txt": "wrong column"}\n', "", '{"text": 3}\n', '{"text": "caf\xe9"}\n'])
def test_a_text_that_cannot_be_read_leaves_the_name_free(
    tiny_model: Path, texts_file: Path, tmp_path: Path, line: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(line, encoding="latin-1")
    config = config_for(tiny_model, tmp_path / "bad.jsonl", tmp_path / "cache", name="mine")
    with pytest.raises(UsageError):
        harvest(config)
    assert {file.name for file in cache_path(config).rglob("*")} <= {".lock"}
    good = dataclasses.replace(config, dataset=str(texts_file), tokens=16 * CTX)
    assert harvest(good).shards_written == 2


def test_what_was_stopped_before_its_first_shard_makes_room(
    tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    begun = config_for(tiny_model, texts_file, tmp_path, name="mine", tokens=16 * CTX)
    with monkeypatch.context() as patched:
        patched.setattr(Forward, "compute", stopped)
        with pytest.raises(KeyboardInterrupt):
            harvest(begun)
    assert (tmp_path / "mine/plan.json").exists()
    meant = dataclasses.replace(begun, sites=("layer_00.resid_mid",))
    assert not plan(meant).conflicts
    assert contents(harvest(meant).path) == contents(harvest(dataclasses.replace(meant, name="fresh")).path)
    with pytest.raises(DataError, match="holds sites that this config lacks or stores differently"):
        harvest(begun)  # what is committed stays


def test_a_checkpoint_that_lacks_weights_or_safetensors(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"no weights for 1 parameters that its sites need, such as .*up_proj"):
        harvest(config_for(model, texts_file, tmp_path / "cache"))
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    with pytest.raises(UsageError, match="cannot load"):
        harvest(config_for(model, texts_file, tmp_path / "cache"))


def test_a_full_disk_loses_nothing(
    tiny_model: Path, texts_file: Path, tmp_path: Path, whole: HarvestResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tiny_model, texts_file, tmp_path)
    write, written = sparse_pipeline.shared.cache.files.write_all, 0
    room = (whole.path / "tokenizer" / "tokenizer.json").stat().st_size + whole.bytes // 2

    def full(descriptor: int, data: memoryview) -> None:
        nonlocal written
        written += len(data)
        if written > room:
            raise OSError(28, "No space left on device")
        write(descriptor, data)

    monkeypatch.setattr(sparse_pipeline.shared.cache.files, "write_all", full)
    with pytest.raises(PipelineError, match="the disk is full") as caught:
        harvest(config)
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    kept = len(list((cache_path(config) / "commits").glob("*.json")))
    assert 0 < kept < 6
    assert not list(cache_path(config).rglob("*.partial"))
    assert harvest(config).shards_written == 6 - kept
    assert contents(cache_path(config)) == contents(whole.path)


def test_a_disk_that_is_too_small_is_refused_at_once(
    tiny_model: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_pipeline.harvest.run.free_disk", lambda _path: 1000)
    with pytest.raises(PipelineError, match="1,000 are free on its disk"):
        harvest(config_for(tiny_model, texts_file, tmp_path))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_names_of_caches(tmp_path: Path) -> None:
    base = HarvestConfig(cache_dir=tmp_path)
    name = cache_path(base).name
    assert name.startswith("demo-layer_02.resid_mid+mlp_out-")
    assert len(name.rsplit("-", 1)[1]) == 8
    same = dataclasses.replace(base, writers=5, device="cpu", buffers=9)
    assert cache_path(same).name == name, "how the work is done does not name another cache"
    assert cache_path(dataclasses.replace(base, tokens=1000)).name != name
    assert cache_path(dataclasses.replace(base, name="mine")) == tmp_path / "mine"
    hub = dataclasses.replace(base, model="google/gemma-2-2b", sites=("layer_08.resid_mid", "layer_19.mlp_out"))
    assert cache_path(hub).name.startswith("gemma-2-2b-layer_08.resid_mid+layer_19.mlp_out-")
    many = dataclasses.replace(base, sites=tuple(format_site(i, "resid_post") for i in range(26)))
    assert cache_path(many).name.startswith("demo-26_sites-")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sits": []}, "did you mean 'sites'"),
        ({"ctx": 1}, "BOS and a token"),
        ({"ctx": "128"}, "ctx"),
        ({"sites": []}, "sites: expected at least one"),
        ({"tokens": 0}, "at least 1"),
        ({"shard_rows": 100}, "expected a multiple of ctx = 128"),
        ({"device": "gpu"}, "auto, cpu, cuda"),
        ({"dtype": "int8"}, "dtype"),
        ({"name": "../elsewhere"}, "letters, digits"),
        ({"buffers": 0}, "buffers"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(HarvestConfig, settings, "harvest")


# --- storage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["bfloat16", "float32", "fp8", "int8"])
@pytest.mark.parametrize("shards", ["chunked", "sharded"])
def test_dry_run_predicts_the_bytes_of_every_storage(
    tiny_model: Path, texts_file: Path, tmp_path: Path, storage: Any, shards: Any
) -> None:
    """45 sequences, so that the last shard is short; one of the two sites is stored as something else."""
    config = config_for(
        tiny_model,
        texts_file,
        tmp_path,
        tokens=45 * CTX,
        storage=storage,
        storage_of={"layer_01.mlp_out": "int8" if storage == "fp8" else "fp8"},
        layout=shards,
        chunk_rows=4 * CTX if shards == "sharded" else 0,
    )
    planned = plan(config)
    result = harvest(config)
    written = sum(file.stat().st_size for file in result.path.joinpath("acts.zarr").glob("*/c.*"))
    assert planned.to_dict()["bytes"] == written == result.bytes
    assert planned.to_dict()["sites"]["layer_01.resid_mid"]["storage"] == storage
    assert f" {storage} " in str(planned)
    assert verify_cache(result.path).ok
    assert plan(config).complete
    cache = open_cache(result.path)
    exact = open_cache(
        harvest(dataclasses.replace(config, storage="float32", storage_of={}, layout="chunked", chunk_rows=0)).path
    )
    for site in cache.sites:
        x, y = (one.rows(site, range(45 * CTX)).double() for one in (exact, cache))
        off = (x - y).norm(dim=1) / x.norm(dim=1)
        kind = config.storage_at(site)
        assert off.max() <= {"float32": 0, "bfloat16": 2**-8, "fp8": 0.05, "int8": 0.05}[kind]
        assert kind in ("float32", "bfloat16") or off.min() > 2**-9


def test_settings_that_came_later_leave_older_caches_their_names(texts_file: Path) -> None:
    before = to_dict(HarvestConfig())
    assert set(before) - set(content_settings(HarvestConfig())) == {
        *("cache_dir", "name", "device", "writers", "buffers", "on_bad_row"),
        *("bos", "storage_of", "layout", "chunk_rows", "format", "special_tokens", "train_roles"),
        *("max_document_tokens", "long_documents", "shuffle_documents", "shuffle_seed", "device_map", "max_memory"),
    }
    assert "layout" in content_settings(HarvestConfig(layout="sharded"))
    assert cache_path(HarvestConfig(layout="sharded")) != cache_path(HarvestConfig())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"storage": "fp4"}, "harvest.storage"),
        ({"storage_of": {"layer_09.mlp_out": "fp8"}}, "layer_09.mlp_out not found in the sites"),
        ({"storage_of": {"layer_02.mlp_out": "fp4"}}, "harvest.storage_of"),
        ({"layout": "flat"}, "harvest.layout"),
        ({"chunk_rows": 128}, "chunk_rows: 128 needs layout: sharded"),
        ({"layout": "sharded", "chunk_rows": 100}, "chunk_rows: expected a multiple of ctx = 128, found 100"),
        (
            {"layout": "sharded", "chunk_rows": 384, "shard_rows": 1024},
            "a shard of 1024 rows is no multiple of 384",
        ),
    ],
)
def test_a_bad_storage_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate(HarvestConfig, changes, where="harvest")
