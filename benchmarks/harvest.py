"""The harvest against the bare model, the machine's matrix product and the disk's own rate, in one run.

    python -m benchmarks.harvest [--model demo] [--tokens 262144] [--compile] [--folder .] [--json FILE]

Measures, on the same sequences: the plain full forward pass with logits; the cut one, whose activations nobody keeps;
with --compile (on CUDA always) the cut one compiled; and the whole harvest into a cache below --folder, end to end.
Beside them stand the rate of a large matrix product (bfloat16 on CUDA, float32 on a CPU) and of writing with fsync. The
forward passes are timed turn by turn and the figure is the median. On CUDA without --model the shape is Gemma-2-2B's
with random weights. Everything it writes is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.prepare import cost, prepare
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.models.bodies import body_of, drop_later_layers
from sparse_pipeline.models.capture import CompiledReader, SiteReader
from sparse_pipeline.models.checkpoint import find_checkpoint
from sparse_pipeline.models.folder import DEMO_MODEL
from sparse_pipeline.models.loading import load_model
from sparse_pipeline.models.sites import resolve_sites
from sparse_pipeline.shared.console import Console, si, size

LOGITS_TOKENS = 8192
"""Tokens in a call that computes logits: 8,192 rows of Gemma-2's vocabulary take 4 GB in bfloat16."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of one large matrix product, the best of five."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * n**3 / min(seconds_of(lambda: torch.mm(a, b), device) for _ in range(5))


def disk_rate(folder: Path, n_bytes: int) -> float:
    """Bytes/s of writing one file and syncing it."""
    data = os.urandom(min(n_bytes, 1 << 26))
    path = folder / "rate.bin"
    written = 0
    started = time.perf_counter()
    with path.open("wb") as file:
        while written < n_bytes:
            written += file.write(data)
        file.flush()
        os.fsync(file.fileno())
    taken = time.perf_counter() - started
    path.unlink()
    return written / taken


def corpus_file(folder: Path, characters: int = 0) -> Path:
    """The demo corpus as JSON lines, so that collecting it from the Python installation is not timed.

    Args:
        characters: repeat it until there are so many.
    """
    from sparse_pipeline.harvest.demo import corpus

    path = folder / "corpus.jsonl"
    texts = [document.text for document in corpus.documents()]
    with path.open("w", encoding="utf-8") as file:
        for text in texts * max(1, -(-characters // sum(map(len, texts)))):
            file.write(json.dumps({"text": text}) + "\n")
    return path


def gemma_2_2b(folder: Path, layers: int = 26, device: str = "cuda", **shape: Any) -> Path:
    """A checkpoint of Gemma-2-2B's shape with random weights, and the demo's tokenizer.

    Args:
        device: where the weights are drawn.
        shape: fields of the config that differ from Gemma-2-2B's.
    """
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    path = folder / "gemma-2-2b-shape"
    config = Gemma2Config(num_hidden_layers=layers, dtype=torch.bfloat16, **shape)
    with torch.device(device):
        model = Gemma2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(path)
    return path


def forwards(config: HarvestConfig, compiled: bool, repeats: int) -> tuple[dict[str, float], float, float]:
    """Tokens/s of each forward pass, and FLOP per token of the cut one and of the full one."""
    job = prepare(config)
    checkpoint = find_checkpoint(config)
    device = checkpoint.device
    tokens = next(job.blocks()).tokens[: job.batch_seqs]
    ids = torch.from_numpy(tokens.astype("int64")).to(device)
    full = load_model(checkpoint, config.model).to(device)
    cut = load_model(checkpoint, config.model)
    sites = resolve_sites(config.sites, cut)
    drop_later_layers(cut, sites)
    body = body_of(cut).to(device)

    def plain() -> None:  # a few sequences at a time: logits of a large vocabulary fill the memory of a device
        with torch.inference_mode():
            for part in ids.split(max(1, LOGITS_TOKENS // ids.shape[1])):
                full(input_ids=part, use_cache=False)

    def cut_pass(reader_class: type[SiteReader]) -> Callable[[], None]:
        def work() -> None:
            with reader_class(cut, body, sites) as reader:
                reader.read(ids, None, lambda _name, _value: None)

        return work

    works = {"full": plain, "cut": cut_pass(SiteReader)}
    if compiled:  # its hooks stay on: they are part of the graph. Another copy, so that the eager one has its own only
        twin = load_model(checkpoint, config.model)
        drop_later_layers(twin, sites)
        reader = CompiledReader(twin, body_of(twin).to(device), sites)
        reader.__enter__()
        works["cut + compile"] = lambda: reader.read(ids, None, lambda _name, _value: None)
    for work in works.values():
        work()  # warm-up; compiles
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds_of(work, device))
    _, _, price = cost(job)
    rates = {name: ids.numel() / statistics.median(values) for name, values in taken.items()}
    return rates, price.flops_per_token, price.flops_per_token / price.flops_share


def measure(config: HarvestConfig, compiled: bool, repeats: int, folder: Path) -> dict[str, Any]:
    """Everything the tables show."""
    device = find_checkpoint(config).device
    rates, flops, full_flops = forwards(config, compiled, repeats)
    result = harvest(replace(config, compile="on" if compiled else "off"), Console(quiet=True))
    rates["end to end"] = result.tokens_per_second
    bytes_per_token = result.bytes / (result.n_sequences * result.ctx)
    ceiling, disk = matmul_rate(device), disk_rate(folder, min(result.bytes, 1 << 32))
    bare = rates["cut + compile" if compiled else "cut"]
    per_token = {name: full_flops if name == "full" else flops for name in rates}
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "model": config.model,
        "tokens": result.n_sequences * result.ctx,
        "flops_per_token": per_token,
        "bytes_per_token": bytes_per_token,
        "matmul_flops": ceiling,
        "disk_bytes_per_second": disk,
        "tokens_per_second": rates,
        "of_matmul": {name: rate * per_token[name] / ceiling for name, rate in rates.items()},
        "end_to_end_over_full": rates["end to end"] / rates["full"],
        "end_to_end_over_bare": rates["end to end"] / bare,
        "end_to_end_over_disk": rates["end to end"] * bytes_per_token / disk,
        "stages": result.stages,
    }


def text(found: dict[str, Any]) -> str:
    lines = [
        f"{found['device']}, torch {found['torch']}, {found['model']}, {si(found['tokens'])} tokens; matrix product "
        f"{si(found['matmul_flops'])}FLOP/s, disk with fsync {size(found['disk_bytes_per_second'])}/s",
        "",
        "| | ktok/s | GFLOP/s | of the matrix product | GB/s | of the disk |",
        "|---|---|---|---|---|---|",
    ]
    for name, rate in found["tokens_per_second"].items():
        share, flops = found["of_matmul"][name], rate * found["flops_per_token"][name] / 1e9
        made, disk = rate * found["bytes_per_token"], found["disk_bytes_per_second"]
        kept = f"{made / 1e9:.3g} | {made / disk:.3f}" if name == "end to end" else " | "
        lines.append(f"| {name} | {rate / 1e3:.4g} | {flops:.4g} | {share:.2f} | {kept} |")
    stages = ", ".join(f"{stage} {share:.1%}" for stage, share in found["stages"].items())
    lines += [
        "",
        f"end to end: {found['end_to_end_over_full']:.2f} × the full forward, "
        f"{found['end_to_end_over_bare']:.2f} × the bare cut forward, "
        f"{found['end_to_end_over_disk']:.2f} × the disk; the loop waited for: {stages}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="demo, a folder or a hub name; on CUDA the default is Gemma-2-2B's shape")
    parser.add_argument("--dataset", help="a local file; the default is the demo corpus, collected beforehand")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also on a CPU")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        model = options.model or (str(gemma_2_2b(folder)) if cuda else "demo")
        layer = options.layer if options.layer is not None else (2 if model == "demo" else 8)
        config = HarvestConfig(
            model=model,
            dataset=options.dataset or str(corpus_file(folder)),
            sites=(f"layer_{layer:02d}.resid_mid", f"layer_{layer:02d}.mlp_out"),
            tokens=options.tokens or (2_097_152 if cuda else 262_144),
            batch_tokens=options.batch_tokens or (65_536 if cuda else 8192),
            cache_dir=folder / "cache",
        )
        found = measure(config, cuda or options.compile, options.repeats, folder)
    print(text(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
