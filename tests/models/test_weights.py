"""GGUF files and adapters: the activations of the same weights loaded plainly, their identity, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from sparse_pipeline.analyze.reports.cross_entropy.model import model_of
from sparse_pipeline.analyze.subject.harvested import made_model
from sparse_pipeline.analyze.subject.language_model import unembedding_of
from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.memory import refuse_large_buffers, weight_bytes
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.prepare import prepare
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.models.checkpoint import find_checkpoint
from sparse_pipeline.models.loading import load_cut
from sparse_pipeline.models.spliced_loss import losses
from sparse_pipeline.shared.cache import open_cache
from sparse_pipeline.shared.console import size
from sparse_pipeline.shared.errors import DataError, PipelineError, UsageError
from tests.harvest.conftest import CTX, make_texts

gguf = pytest.importorskip("gguf", reason="the dev extra installs gguf")
peft = pytest.importorskip("peft", reason="the dev extra installs peft")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
SITES = ("layer_00.resid_mid", "layer_01.mlp_out")
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's tensors in GGUF and in transformers."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen-2 checkpoint with a byte-level tokenizer, trained on the tests' words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp("plain") / "model"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(make_texts(100), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    torch.manual_seed(4)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(fast), **SHAPE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.ndim == 1))
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


def write_gguf(plain: Path, file: Path, kind: str) -> dict[str, torch.Tensor]:
    """Writes the checkpoint as GGUF with its matrices quantised, and returns the dequantised weights by name."""
    from safetensors.torch import load_file

    state = load_file(plain / "model.safetensors")
    tokenizer = json.loads((plain / "tokenizer.json").read_text())["model"]
    quantisation = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(list(tokenizer["vocab"]))
    writer.add_token_types([3, *[1] * (len(tokenizer["vocab"]) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_eos_token_id(0)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    names |= {f"blk.{n}.{a}": f"model.layers.{n}.{b}" for n in range(2) for a, b in NAMES.items()}
    found = {}
    for theirs, ours in names.items():
        for part in ("weight", "bias"):
            if f"{ours}.{part}" not in state:
                continue
            value = state[f"{ours}.{part}"].float().numpy()
            if value.ndim == 2:
                stored = gguf.quants.quantize(value, quantisation)
                writer.add_tensor(f"{theirs}.{part}", stored, raw_dtype=quantisation)
                value = gguf.quants.dequantize(stored, quantisation)
            else:
                writer.add_tensor(f"{theirs}.{part}", value)
            found[f"{ours}.{part}"] = torch.from_numpy(np.array(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def settings(model: Path, texts: Path, folder: Path) -> HarvestConfig:
    base = HarvestConfig(model=str(model), dataset=str(texts), sites=SITES, tokens=16 * CTX, ctx=CTX, device="cpu")
    return dataclasses.replace(base, batch_tokens=8 * CTX, cache_dir=folder / "cache", storage="float32")


def same_rows(one: HarvestConfig, two: HarvestConfig) -> None:
    found, expected = (open_cache(harvest(config).path) for config in (one, two))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    for site in SITES:
        rows = np.arange(found.n_rows)
        torch.testing.assert_close(found.rows(site, rows), expected.rows(site, rows), rtol=1e-4, atol=1e-5)
        assert found.rows(site, rows).abs().mean() > 0.01


@pytest.mark.parametrize(("kind", "as_folder"), [("Q8_0", False), ("F16", True), ("Q4_0", True)])
def test_a_gguf_file_gives_the_activations_of_its_dequantised_weights(
    kind: str, as_folder: bool, plain: Path, texts_file: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    folder, loose = tmp_path / "gguf", tmp_path / "loose"
    folder.mkdir()
    shutil.copytree(plain, loose)
    save_file(write_gguf(plain, folder / "tiny.gguf", kind), loose / "model.safetensors", {"format": "pt"})
    config = settings(folder if as_folder else folder / "tiny.gguf", texts_file, tmp_path)
    assert plan(config).layout.sites[0].width == 64
    same_rows(config, settings(loose, texts_file, tmp_path))
    resolved = open_cache(harvest(config).path).config["resolved"]
    assert resolved["gguf"]["quantisation"] == kind
    assert resolved["gguf"]["tensors"][kind] == 2 + 7 * 2  # both embeddings, seven matrices a layer
    assert {path.name for path in folder.iterdir()} == {"tiny.gguf"}


def test_gguf_files_that_cannot_be_read(plain: Path, texts_file: Path, tmp_path: Path) -> None:
    write_gguf(plain, tmp_path / "a.gguf", "Q8_0")
    data = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="2 GGUF files in .*: a.gguf, b.gguf") as caught:
        plan(settings(tmp_path, texts_file, tmp_path))
    assert caught.value.hint == f"--set harvest.model={tmp_path / 'a.gguf'}"
    with pytest.raises(PipelineError, match=r"b\.gguf"):
        harvest(settings(tmp_path / "b.gguf", texts_file, tmp_path))


def save_lora(plain: Path, path: Path, matrices: Sequence[str] = ("q_proj", "down_proj")) -> None:
    """A LoRA over some kinds of matrices with random weights, stored alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(plain)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(matrices), init_lora_weights=False)
    torch.manual_seed(8)
    peft.get_peft_model(model, config).save_pretrained(path, save_embedding_layers=False)


def merged_by_hand(plain: Path, adapter: Path, path: Path) -> None:
    """W + (α / r) B A, written out."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(plain, path)
    state, parts = load_file(path / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name, a in parts.items():
        if name.endswith("lora_A.weight"):
            target = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            state[target] = state[target] + 8 / 4 * parts[name.replace("lora_A", "lora_B")] @ a
    save_file(state, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("where", ["alone", "beside the weights"])
def test_an_adapter_is_merged(where: str, plain: Path, texts_file: Path, tmp_path: Path) -> None:
    adapter, by_hand = tmp_path / "adapter", tmp_path / "by_hand"
    save_lora(plain, adapter)
    merged_by_hand(plain, adapter, by_hand)
    model = adapter
    if where != "alone":
        model = tmp_path / "both"
        shutil.copytree(plain, model)
        for file in adapter.glob("adapter_*"):
            shutil.copy(file, model)
    config = settings(model, texts_file, tmp_path)
    assert plan(config).layout.sites[0].width == 64
    same_rows(config, settings(by_hand, texts_file, tmp_path))
    resolved = open_cache(harvest(config).path).config["resolved"]
    assert resolved["adapter"]["peft_type"] == "LORA"
    assert len(resolved["adapter"]["sha256"]) == 64
    base = open_cache(harvest(settings(plain, texts_file, tmp_path)).path)
    assert "adapter" not in base.config["resolved"]
    rows = np.arange(base.n_rows)
    assert not torch.allclose(base.rows(SITES[1], rows), open_cache(harvest(config).path).rows(SITES[1], rows))


def test_adapters_that_cannot_be_merged(plain: Path, tmp_path: Path) -> None:
    save_lora(plain, tmp_path / "lora")

    def load(path: Path) -> None:
        config = HarvestConfig(model=str(path), ctx=CTX, device="cpu")
        load_cut(find_checkpoint(config), str(path), ("layer_00.resid_mid",))

    def broken(name: str, **changes: Any) -> Path:
        path = tmp_path / name
        shutil.copytree(tmp_path / "lora", path)
        found = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps(found | changes))
        return path

    with pytest.raises(UsageError, match=r"base model of .*gone.*: folder not found: /nowhere"):
        load(broken("gone", base_model_name_or_path="/nowhere"))
    with pytest.raises(UsageError, match="does not name the model that the adapter belongs to"):
        load(broken("nameless", base_model_name_or_path=None))
    with pytest.raises(UsageError, match="cannot be merged into its model"):
        load(broken("others", target_modules=["not_there"]))
    pickled = broken("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"no adapter_model.safetensors in the adapter .*; a pickle"):
        load(pickled)


@pytest.mark.parametrize("kind", ["adapter alone", "adapter beside the weights", "gguf"])
def test_reports_run_the_model_that_was_harvested(
    kind: str, plain: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-entropy and logit lens: logits and W_U of the merged or dequantised weights, here with an adapted head."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    by_hand, model = tmp_path / "by_hand", tmp_path / "model"
    if kind == "gguf":
        model.mkdir()
        shutil.copytree(plain, by_hand)
        save_file(write_gguf(plain, model / "tiny.gguf", "Q4_0"), by_hand / "model.safetensors", {"format": "pt"})
    else:
        save_lora(plain, model, ["q_proj", "down_proj", "lm_head"])
        merged_by_hand(plain, model, by_hand)
        if kind != "adapter alone":
            shutil.copytree(plain, model, dirs_exist_ok=True)
    config = dataclasses.replace(
        settings(model, texts_file, tmp_path), sites=("layer_00.resid_mid", "layer_00.mlp_out")
    )
    cache = open_cache(harvest(config).path)
    expected = AutoModelForCausalLM.from_pretrained(by_hand, dtype=torch.float32).eval()
    ids = torch.from_numpy(cache.tokens[:4].astype(np.int64))
    with torch.inference_mode():
        logits = expected(input_ids=ids).logits
        found = model_of(cache, "cpu")(input_ids=ids).logits
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    lens = unembedding_of(made_model(cache, "cpu"), 64)
    assert lens is not None
    torch.testing.assert_close(lens.weight, load_file(by_hand / "model.safetensors")["lm_head.weight"].float())
    base = load_file(plain / "model.safetensors")["lm_head.weight"].float()
    assert not torch.allclose(lens.weight, base, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lens.gain, expected.model.norm.weight.data)
    source, target = config.sites
    clean = losses(
        model_of(cache, "cpu"), cache, np.arange(4), source=source, target=target, batch=4,
        replacements={"same": lambda _, y: y},
    )  # fmt: skip
    ce = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert clean["clean"].mean("ce", 0) == pytest.approx(float(ce), rel=1e-4)

    file = next(path for path in model.iterdir() if path.suffix in (".gguf",) or path.name == "adapter_config.json")
    if file.suffix == ".json":
        found_config = json.loads(file.read_text())
        file.write_text(json.dumps(found_config | {"lora_alpha": 9}))
    else:
        write_gguf(plain, file, "Q8_0")
    with pytest.raises(DataError, match="holds another (adapter|gguf) than the one"):
        model_of(cache, "cpu")


def test_memory_of_gguf_files_and_of_models_on_the_hub(
    plain: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    file = tmp_path / "tiny.gguf"
    write_gguf(plain, file, "Q8_0")
    numbers = sum(value.numel() for value in load_file(plain / "model.safetensors").values())
    config = settings(file, texts_file, tmp_path)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=8 * numbers - 1))
    with pytest.raises(PipelineError, match=f"needs {size(8 * numbers)} of host memory, .* are free"):
        harvest(config)
    assert not (tmp_path / "cache").exists()
    job = prepare(settings(plain, texts_file, tmp_path))
    assert weight_bytes(job) == 4 * numbers
    elsewhere = dataclasses.replace(job.checkpoint, source="organisation/name", weights=None)
    assert weight_bytes(dataclasses.replace(job, checkpoint=elsewhere)) == 4 * numbers


def test_buffers_that_do_not_fit_beside_the_model(
    plain: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(settings(plain, texts_file, tmp_path), shard_rows=CTX, batch_tokens=CTX, buffers=3)
    shapes, job = plan(config).layout, prepare(config)
    one = CTX * 2 * 64 * 4
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=2 * one + 5))
    with pytest.raises(PipelineError, match=f"3 buffers .* need {size(3 * one)} of host memory, .* are free") as caught:
        refuse_large_buffers(job, shapes)
    assert caught.value.hint == "--set harvest.buffers=2"
    refuse_large_buffers(dataclasses.replace(job, config=dataclasses.replace(config, buffers=2)), shapes)
