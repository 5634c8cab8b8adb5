"""One training step: ours, the floor, and each installed peer, on the same tensors in one run.

    python -m benchmarks.train_step                                   # d = 384, F = 3,072, k = 16, batch 1024
    python -m benchmarks.train_step --width 2304 --latents 18432 --k 48 --batch 1024,4096,16384 --device cuda
    python -m benchmarks.train_step --device cuda --breakdown ...     # also the time of each part of our fused step

A step is everything between a batch that lies on the device and moved weights: normalisation, forward, backward,
clipping, Adam, constraints on the decoder, counters. Each contender runs its own library's step: ours is
`train.step.train_step` (with the fused kernels where `--device cuda` and Triton are there, and without); SAELens
`SAETrainer.step`; dictionary_learning `Trainer.update`; sparsify the forward, backward, clipping and decoder
constraints of its training loop, with Adam. The floor is what no step with dense Adam can avoid: one encoder product,
and Adam over both matrices.

On a CUDA device products are in bfloat16 (ours: `precision: bfloat16`; peers: autocast), on a CPU in float32, for all.
Steps are interleaved round by round, so that whatever else the machine does falls on everyone; the figure is the
median. The peers are the extra `bench` (sae-lens, dictionary-learning, eai-sparsify); one that is missing is reported
as such. dictionary_learning imports nnsight for a buffer that is not used here: an empty module stands in where that is
missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_pipeline.shared.cache import Cache, CacheWriter, Flag, Layout, SiteSpec, open_cache
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.ops import dense_pre
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.kernels import unavailable
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.begin import new_trainee
from sparse_pipeline.train.step.trainee import Trainee

Step = Callable[[int], None]
BATCHES = 8
CTX = 32
SOURCE, TARGET = "layer_00.resid_mid", "layer_00.mlp_out"


@dataclass(frozen=True)
class Shape:
    """What every contender is given."""

    width: int
    latents: int
    k: int
    batch: int
    device: str

    @property
    def groups(self) -> tuple[int, ...]:
        """Group sizes of nested dictionaries: 1/8, 1/4, 1/2, 1/8."""
        f = self.latents
        return (f // 8, f // 4, f - f // 8 - f // 4 - f // 8, f // 8)

    @property
    def low(self) -> bool:
        """Whether products are in bfloat16."""
        return self.device == "cuda"


@dataclass
class Data:
    """Inputs and targets, resident, the same for everyone: a low-rank signal and noise, so that selection is spread."""

    shape: Shape
    seed: int = 0
    x: list[Tensor] = field(init=False)
    y: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        s, g = self.shape, torch.Generator(self.shape.device).manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, device=s.device)

        base = normal(256, s.width) / 16
        self.x, self.y = [], []
        for _ in range(BATCHES):
            x = normal(s.batch, 256) @ base + 0.3 * normal(s.batch, s.width)
            self.x.append(x)
            self.y.append(torch.tanh(x.roll(1, -1)) + 0.1 * x)


@dataclass(frozen=True)
class Contender:
    """One row of the table: whose step it is, the work it does, and how to make it."""

    who: str
    work: str
    build: Callable[[Shape, Data], Step]

    @property
    def name(self) -> str:
        return f"{self.who}: {self.work}"


# Ours


def ours(work: str, fused: str) -> Callable[[Shape, Data], Step]:
    def build(s: Shape, data: Data) -> Step:
        trainee = our_trainee(s, data, work, fused)
        transcoder = "transcoder" in work
        rows = [our_batch(x, y if transcoder else x) for x, y in zip(data.x, data.y, strict=True)]
        return lambda i: (train_step(trainee, rows[i % BATCHES]), None)[1]

    return build


def our_trainee(s: Shape, data: Data, work: str, fused: str, **settings: Any) -> Trainee:
    """A run before its first step, normalised by the statistics of a small cache of the first batch's rows.

    Args:
        settings: other settings of training than this benchmark's.
    """
    transcoder = "transcoder" in work
    coder = (
        MatryoshkaConfig(latents=s.latents, k=s.k, groups=s.groups)
        if "Matryoshka" in work
        else TopKConfig(latents=s.latents, k=s.k)
    )
    config = TrainConfig(
        source=SOURCE,
        target=TARGET if transcoder else None,
        coder=coder,
        optimizer=OptimizerConfig(lr=3e-4, warmup_steps=200),
        dead_after=10**9,
        device=s.device,
        precision="bfloat16" if s.low else "float32",
        fused=fused,  # type: ignore[arg-type]
        checkpoint_every=10**9,
    )
    config = replace(config, **settings)
    with tempfile.TemporaryDirectory() as folder:
        cache = small_cache(Path(folder) / "cache", data)
        trainee = new_trainee(config, cache, 10**9, cache.n_rows, torch.device(s.device))
    if transcoder:  # it starts at zero; random rows spare the first steps
        trainee.coder.randomise_decoder(trainee.generator)
    return trainee


def small_cache(path: Path, data: Data) -> Cache:
    """A cache of the first batch's rows (at most 1,024 of them), for its statistics."""
    n_seq = max(2, min(len(data.x[0]), 1024) // CTX)
    rows = {SOURCE: data.x[0], TARGET: data.y[0]}
    rows = {site: values.repeat(-(-n_seq * CTX // len(values)), 1)[: n_seq * CTX] for site, values in rows.items()}
    specs = tuple(SiteSpec(site, data.shape.width, module_path="-", layer=0, kind=site[9:]) for site in rows)
    place = np.arange(n_seq * CTX).reshape(n_seq, CTX)
    flags = np.zeros(place.shape, np.uint8)
    flags[:, 0] = int(Flag.BOS)
    with CacheWriter.create(path, Layout(n_seq, CTX, sites=specs), {"made_by": "benchmarks.train_step"}, {}) as writer:
        for shard in writer.missing_shards():
            seqs = writer.layout.seqs_of(shard)
            own = slice(seqs.start, seqs.stop)
            acts = {site: v[own.start * CTX : own.stop * CTX].bfloat16().cpu() for site, v in rows.items()}
            document, token = place[own] // CTX, place[own] % CTX
            writer.write_shard(
                shard,
                tokens=token.astype(np.int32),
                doc_id=document.astype(np.uint32),
                pos_in_doc=token.astype(np.uint16),
                flags=flags[own],
                acts=acts,
            )
        writer.finish()
    return open_cache(path)


def our_batch(x: Tensor, y: Tensor) -> Batch:
    n = len(x)
    zeros = torch.zeros(n, dtype=torch.int64, device=x.device)
    return Batch(
        acts={SOURCE: x, TARGET: y},
        tokens=zeros,
        position=zeros + 1,
        pos_in_doc=zeros,
        doc_id=zeros,
        flags=zeros.to(torch.uint8),
        row=zeros,  # the small cache has fewer rows than a large batch
    )


# The floor


def encoder_product(s: Shape, data: Data) -> Step:
    dtype = torch.bfloat16 if s.low else torch.float32
    w = torch.randn(s.latents, s.width, device=s.device, dtype=dtype)
    b = torch.zeros(s.latents, device=s.device, dtype=dtype)
    x = [rows.to(dtype) for rows in data.x]
    return lambda i: (dense_pre(x[i % BATCHES], w, b), None)[1]


def adam_alone(s: Shape, data: Data) -> Step:
    matrices = [torch.nn.Parameter(torch.randn(s.latents, s.width, device=s.device)) for _ in range(2)]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix) * 1e-3
    optimizer = torch.optim.Adam(matrices, lr=1e-5, fused=True)
    return lambda i: (optimizer.step(), None)[1]


# Peers


@contextlib.contextmanager
def standing_in(*names: str) -> Iterator[None]:
    """Empty modules for those of `names` that are not installed; any attribute of one is a class that does nothing."""

    class Empty(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    added = []
    for name in names:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            module = Empty(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = module
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def saelens(work: str) -> Callable[[Shape, Data], Step]:
    def build(s: Shape, data: Data) -> Step:
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes import (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            TopKTrainingSAE,
            TopKTrainingSAEConfig,
        )
        from sae_lens.training.sae_trainer import SAETrainer

        common = {"d_in": s.width, "d_sae": s.latents, "k": s.k, "device": s.device, "dtype": "float32"}
        if "Matryoshka" in work:
            widths = [sum(s.groups[: i + 1]) for i in range(len(s.groups))]
            sae = MatryoshkaBatchTopKTrainingSAE(
                MatryoshkaBatchTopKTrainingSAEConfig(matryoshka_widths=widths, **common)
            )
        else:
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(use_sparse_activations="sparse" in work, **common))
        settings = SAETrainerConfig(
            total_training_samples=10**9,
            train_batch_size_samples=s.batch,
            lr=3e-4,
            lr_end=3e-4,
            lr_warm_up_steps=200,
            device=s.device,
            autocast=s.low and "sparse" not in work,
            logger=LoggingConfig(log_to_wandb=False),
        )
        trainer = SAETrainer(cfg=settings, sae=sae.to(s.device), data_provider=iter([]))
        return lambda i: (trainer.step(data.x[i % BATCHES]), None)[1]

    return build


def dictionary_learning(work: str) -> Callable[[Shape, Data], Step]:
    def build(s: Shape, data: Data) -> Step:
        with standing_in("nnsight"):
            from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
            from dictionary_learning.trainers.top_k import TopKTrainer

        common: dict[str, Any] = {
            "steps": 10**6, "activation_dim": s.width, "dict_size": s.latents, "k": s.k, "layer": 0, "lm_name": "-",
            "device": s.device, "lr": 3e-4,
        }  # fmt: skip
        if "Matryoshka" in work:
            fractions = [g / s.latents for g in s.groups]
            trainer = MatryoshkaBatchTopKTrainer(group_fractions=fractions, **common)
        else:
            trainer = TopKTrainer(**common)

        def step(i: int) -> None:
            cast = torch.autocast("cuda", dtype=torch.bfloat16) if s.low else contextlib.nullcontext()
            with cast:
                trainer.update(i + 1, data.x[i % BATCHES])

        return step

    return build


def sparsify(work: str) -> Callable[[Shape, Data], Step]:
    def build(s: Shape, data: Data) -> Step:
        if s.device == "cpu":
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its own switch; otherwise it fails where there is no GPU
        from sparsify.config import SparseCoderConfig
        from sparsify.sparse_coder import SparseCoder

        transcode = "transcoder" in work
        config = SparseCoderConfig(num_latents=s.latents, k=s.k, transcode=transcode, normalize_decoder=True)
        coder = SparseCoder(s.width, config, device=s.device, dtype=torch.float32)
        if transcode:
            coder.W_dec.data.normal_(std=0.02)
        optimizer = torch.optim.Adam(coder.parameters(), lr=3e-4, fused=True)

        def step(i: int) -> None:
            if not transcode:
                coder.set_decoder_norm_to_unit_norm()
            cast = torch.autocast("cuda", dtype=torch.bfloat16) if s.low else contextlib.nullcontext()
            with cast:
                out = coder(data.x[i % BATCHES], data.y[i % BATCHES] if transcode else None)
            out.fvu.backward()
            if not transcode:
                coder.remove_gradient_parallel_to_decoder_directions()
            torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    return build


WORKS = ("TopK SAE", "TopK transcoder", "Matryoshka SAE", "Matryoshka transcoder")
FLOOR = (
    Contender("floor", "encoder product", encoder_product),
    Contender("floor", "Adam, both matrices", adam_alone),
)
PEERS = (
    ("sae-lens", Contender("SAELens", "TopK SAE", saelens("TopK"))),
    ("sae-lens", Contender("SAELens", "TopK SAE, sparse", saelens("TopK, sparse"))),
    ("sae-lens", Contender("SAELens", "Matryoshka SAE", saelens("Matryoshka"))),
    ("dictionary-learning", Contender("dictionary_learning", "TopK SAE", dictionary_learning("TopK"))),
    ("dictionary-learning", Contender("dictionary_learning", "Matryoshka SAE", dictionary_learning("Matryoshka"))),
    ("eai-sparsify", Contender("sparsify", "TopK SAE", sparsify("SAE"))),
    ("eai-sparsify", Contender("sparsify", "TopK transcoder", sparsify("transcoder"))),
)


def contenders(device: str) -> tuple[list[Contender], dict[str, str]]:
    """Who takes part, and the version of each peer (or that it is not installed)."""
    found = list(FLOOR)
    kinds = [("ours, autograd", "off")]
    if unavailable(torch.device(device)) is None and device == "cuda":
        kinds.insert(0, ("ours, fused", "on"))
    found += [Contender(who, work, ours(work, fused)) for who, fused in kinds for work in WORKS]
    versions = {}
    for package, contender in PEERS:
        try:
            versions[package] = importlib.metadata.version(package)
            found.append(contender)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return found, versions


@dataclass
class Result:
    """One contender's figures."""

    who: str
    work: str
    milliseconds: float
    quartiles: tuple[float, float]
    peak_bytes: int | None
    over_floor: float = 0.0
    over_ours: float | None = None
    """How many times as long as our fastest step of the same work (for a peer without one: the TopK form of it)."""


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(shape: Shape, chosen: list[Contender], rounds: int, warmup: int) -> tuple[list[Result], list[str]]:
    """Medians of interleaved steps, and what failed."""
    data, built, failed = Data(shape), [], []
    for contender in chosen:
        try:
            before = memory_before(shape.device)
            step = contender.build(shape, data)
            for i in range(warmup):
                step(i)
            synchronise(shape.device)
            built.append((contender, step, memory_since(shape.device, before)))
        except Exception as error:  # a peer may fail in any way of its own; the table says so
            if contender.who.startswith(("ours", "floor")):
                raise
            failed.append(f"{contender.name}: {type(error).__name__}: {str(error)[:200]}")
    times: list[list[float]] = [[] for _ in built]
    for r in range(rounds):
        for (_, step, _), spent in zip(built, times, strict=True):
            synchronise(shape.device)
            began = time.perf_counter()
            step(warmup + r)
            synchronise(shape.device)
            spent.append(1e3 * (time.perf_counter() - began))
    results = []
    for (contender, _, peak), spent in zip(built, times, strict=True):
        quarter = statistics.quantiles(spent, n=4)
        results.append(Result(contender.who, contender.work, statistics.median(spent), (quarter[0], quarter[2]), peak))
    return compared(results), failed


def compared(results: list[Result]) -> list[Result]:
    """Fill in the ratios."""
    floor = sum(r.milliseconds for r in results if r.who == "floor")
    best: dict[str, float] = {}
    for r in results:
        if r.who.startswith("ours"):
            best[r.work] = min(r.milliseconds, best.get(r.work, float("inf")))
    for r in results:
        r.over_floor = r.milliseconds / floor
        same = best.get(r.work.removesuffix(", sparse"))
        if not r.who.startswith(("ours", "floor")) and same is not None:
            r.over_ours = r.milliseconds / same
    return results


def memory_before(device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def memory_since(device: str, before: int) -> int | None:
    """Device bytes that a contender needed at its peak, its parameters and moments included; None on a CPU."""
    return torch.cuda.max_memory_allocated() - before if device == "cuda" else None


def host_memory(args: argparse.Namespace, contender: Contender) -> int | None:
    """Peak memory of a process of its own that does a few of the contender's steps, over one that has only the data."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.train_step",
        "--width",
        str(args.width),
        "--latents",
        str(args.latents),
    ]
    command += ["--k", str(args.k), "--batch", args.batch, "--device", "cpu", "--probe", contender.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.strip() else None


def probe(shape: Shape, chosen: list[Contender], name: str) -> None:
    """Print how far three steps of one contender raise this process's peak memory."""
    data = Data(shape)
    before = peak_memory()
    step = next(c for c in chosen if c.name == name).build(shape, data)
    for i in range(3):
        step(i)
    print(peak_memory() - before)


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes.

    Linux keeps the largest value of getrusage over exec, that of the process it was forked from included, so a child of
    a large process would seem never to grow; the kernel's status page speaks of this program alone.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def breakdown(shape: Shape, work: str, rounds: int = 30) -> dict[str, float]:
    """Milliseconds of each part of our fused step, one part at a time (medians of device events)."""
    data = Data(shape)
    fused = our_trainee(shape, data, work, "on").fused
    assert fused is not None
    for i in range(5):
        fused.step(data.x[i], data.y[i], 3e-4)
    b = fused.buffers
    parts: dict[str, Callable[[], object]] = {
        "encoder product + selection": lambda: fused._select(b),
        "nested decode, dL/dz": lambda: fused._decode(b, None),
        "lists, norm, rows, Adam": lambda: fused._update(b, None, {}, True),
    }
    out = {}
    for name, part in parts.items():
        spent = []
        for _ in range(rounds):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            part()
            end.record()
            torch.cuda.synchronize()
            spent.append(start.elapsed_time(end))
        out[name] = statistics.median(spent)
    return out


def machine(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(results: list[Result]) -> str:
    """Markdown."""
    lines = [
        "| step | work | ms (median) | quartiles | × floor | × ours | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ratio = "" if r.over_ours is None else f"{r.over_ours:.1f}"
        peak = "" if r.peak_bytes is None else f"{r.peak_bytes / 2**30:.2f} GiB"
        lines.append(
            f"| {r.who} | {r.work} | {r.milliseconds:.2f} | {r.quartiles[0]:.2f}–{r.quartiles[1]:.2f} | "
            f"{r.over_floor:.2f} | {ratio} | {peak} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--latents", type=int, default=3072)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--batch", default="1024", help="one size, or several with commas")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--only", default="", help="only contenders whose name contains this")
    parser.add_argument(
        "--memory", action="store_true", help="on a CPU, also peak memory (a process for each contender)"
    )
    parser.add_argument("--breakdown", action="store_true", help="on CUDA, also the parts of our fused step")
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("WANDB_MODE", "disabled")
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA for what is left in float32, for all

    chosen, versions = contenders(args.device)
    chosen = [c for c in chosen if c.who == "floor" or args.only.lower() in c.name.lower()]
    shapes = [Shape(args.width, args.latents, args.k, int(b), args.device) for b in args.batch.split(",")]
    if args.probe:
        probe(shapes[0], chosen, args.probe)
        return
    peers = ", ".join(f"{package} {version}" for package, version in versions.items())
    print(f"{machine(args.device)}; peers: {peers}")
    document: dict[str, Any] = {"machine": machine(args.device), "peers": versions, "runs": []}
    for shape in shapes:
        results, failed = measure(shape, chosen, args.rounds, args.warmup)
        if args.memory and args.device == "cpu":
            by_name = {c.name: c for c in chosen}
            for result in results:
                result.peak_bytes = host_memory(args, by_name[f"{result.who}: {result.work}"])
        print(f"\nd = {shape.width}, F = {shape.latents:,}, k = {shape.k}, batch {shape.batch:,}\n\n{table(results)}")
        for line in failed:
            print(f"failed: {line}")
        run: dict[str, Any] = {"shape": asdict(shape), "results": [asdict(r) for r in results], "failed": failed}
        if args.breakdown and args.device == "cuda":
            run["breakdown"] = {work: breakdown(shape, work) for work in ("TopK SAE", "Matryoshka transcoder")}
            for work, parts in run["breakdown"].items():
                print(f"{work}: " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in parts.items()))
        document["runs"].append(run)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
