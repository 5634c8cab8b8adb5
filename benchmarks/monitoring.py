"""What monitors and activation samples add to training: the same steps without them, with each, and with both.

    python -m benchmarks.monitoring                  # d = 384, F = 3,072, k = 16, batch 1024, the defaults of both

A round is `monitor_every` steps of every contender, so that each report and each collection falls into it once;
contenders take turns in blocks of ten steps, in a new order each time, and do what the training loop does after
loading: the step, then what looks at it, reports written to disk. Batches come from a cache of planted features, loaded
beforehand. The figures are medians over rounds: the time of a step, the ratio to the plain contender, and the time
spent in looking over the time of the steps themselves, which a busy machine disturbs least. Writing samples.json
happens at checkpoints only, so it is timed by itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_pipeline.shared.cache import CacheWriter, Flag, Layout, SiteSpec
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.data.stream import open_stream
from sparse_pipeline.train.monitors import MONITORS
from sparse_pipeline.train.plan import plan
from sparse_pipeline.train.runs.session import Session, begin, open_runs
from sparse_pipeline.train.samplers import build_sampler
from sparse_pipeline.train.samples.config import SamplesConfig
from sparse_pipeline.train.step.autograd import train_step

SITE = "layer_00.resid_mid"
BLOCK = 10
BATCHES = 32
CONTENDERS = {
    "plain": {},
    "monitors": {"monitors": True},
    "samples": {"samples": True},
    "both": {"monitors": True, "samples": True},
}


@dataclass(frozen=True)
class Shape:
    """What every contender is given."""

    width: int
    latents: int
    k: int
    batch: int
    rows: int
    ctx: int = 128


def write_cache(path: Path, shape: Shape) -> None:
    """A cache of sparse mixtures of 2,048 planted directions, with documents of 300 tokens and one BOS vector."""
    rng, n_seq = np.random.default_rng(0), shape.rows // shape.ctx
    directions = rng.standard_normal((2048, shape.width)).astype(np.float32) / shape.width**0.5
    spec = SiteSpec(SITE, shape.width, "bfloat16", "model.layers.0", 0, "resid_mid", "out")
    layout = Layout(n_seq, shape.ctx, 64 * shape.ctx, (spec,))
    common = 1 / np.arange(1, 2049) ** 0.7
    with CacheWriter.create(path, layout, {"model": "planted"}, {"made_by": "benchmarks.monitoring"}) as writer:
        for shard in writer.missing_shards():
            seqs = layout.seqs_of(shard)
            n = len(seqs) * shape.ctx
            z = np.zeros((n, 2048), np.float32)
            which = rng.choice(2048, (n, 24), p=common / common.sum())
            z[np.arange(n)[:, None], which] = rng.exponential(1.0, (n, 24)) + 0.3
            x = z @ directions + 0.02 * rng.standard_normal((n, shape.width)).astype(np.float32)
            x[:: shape.ctx] = 6 * directions[0]
            place = np.arange(seqs.start * shape.ctx, seqs.stop * shape.ctx).reshape(-1, shape.ctx)
            flags = np.zeros(place.shape, np.uint8)
            flags[:, 0] = int(Flag.BOS)
            tokens = rng.zipf(1.3, place.shape).clip(3, 30_000).astype(np.int32)
            tokens[:, 0] = 2
            position = (place % 300).astype(np.uint16)
            acts = {SITE: torch.from_numpy(x).bfloat16()}
            document = (place // 300).astype(np.uint32)
            writer.write_shard(shard, tokens=tokens, doc_id=document, pos_in_doc=position, flags=flags, acts=acts)
        writer.finish()


def begin_all(folder: Path, shape: Shape, every: int) -> dict[str, Session]:
    """Every contender before its first step, with a run folder of its own; reports every `every` steps."""
    plain = TrainConfig(
        cache=folder / "cache",
        source=SITE,
        target=None,
        runs=folder / "runs",
        name="plain",
        coder=TopKConfig(latents=shape.latents, k=shape.k),
        data=DataConfig(batch_size=shape.batch, tokens=10**9, heldout=0.0),
        device="cpu",
        monitor_every=every,
    )
    settings: dict[str, Any] = {
        "monitors": {name: monitor.config_class() for name, monitor in MONITORS.items()},  # type: ignore[call-arg]
        "samples": SamplesConfig(),
    }
    configs = [
        TrainConfig(**{**vars(plain), "name": name, **{part: settings[part] for part in parts}})
        for name, parts in CONTENDERS.items()
    ]
    (group,) = plan(configs).groups
    runs = open_runs([group], resume=False)
    thread = ThreadPoolExecutor(1)  # for checkpoints, of which none is due
    return {config.run_name: begin(group, config, runs[config.path], thread) for config in configs}


def batches(session: Session, cache: Path, site: str = SITE) -> list[Batch]:
    """The first batches of the stream."""
    from sparse_pipeline.shared.cache import open_cache

    config = session.trainee.config
    with open_stream(open_cache(cache), [site], config.data, build_sampler(config.sampler)) as stream:
        return [next(stream) for _ in range(BATCHES)]


def block(session: Session, data: list[Batch]) -> tuple[float, float]:
    """Seconds of ten steps and what looks at them, and how many of these the looking took."""
    started, looking = time.perf_counter(), 0.0
    for _ in range(BLOCK):
        rows = data[session.step % len(data)]
        result = train_step(session.trainee, rows)
        done = time.perf_counter()
        session.look(result, rows)
        looking += time.perf_counter() - done
    return time.perf_counter() - started, looking


def measure(folder: Path, shape: Shape, every: int, rounds: int, warmup: int) -> dict[str, Any]:
    """Seconds of a round by contender, and of writing the samples."""
    write_cache(folder / "cache", shape)
    sessions = begin_all(folder, shape, every)
    data = batches(sessions["plain"], folder / "cache")
    period = sessions["plain"].trainee.config.monitor_every
    order = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    shares: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(warmup + rounds):
        seconds, looking = dict.fromkeys(sessions, 0.0), dict.fromkeys(sessions, 0.0)
        for _ in range(period // BLOCK):
            for name in order.sample(list(sessions), len(sessions)):
                all_of_it, look = block(sessions[name], data)
                seconds[name] += all_of_it
                looking[name] += look
        if number >= warmup:
            for name, value in seconds.items():
                taken[name].append(value)
                shares[name].append(looking[name] / (value - looking[name]))
    writing = []
    writer = sessions["both"].samples
    assert writer is not None
    for _ in range(5):
        started = time.perf_counter()
        writer.write(sessions["both"].step)
        writing.append(time.perf_counter() - started)
    return {
        "machine": machine(),
        "shape": asdict(shape),
        "rounds": rounds,
        "steps_per_round": period,
        "milliseconds_per_step": {n: 1e3 * statistics.median(v) / period for n, v in taken.items()},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(values, taken["plain"], strict=True))
            for name, values in taken.items()
        },
        "looking": {name: statistics.median(values) for name, values in shares.items()},
        "milliseconds_to_write_samples": 1e3 * statistics.median(writing),
        "checkpoint_every": sessions["both"].trainee.config.checkpoint_steps,
    }


def machine() -> str:
    """The processor, and how many threads are used."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = models[0].strip() if models else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def text(found: dict[str, Any]) -> str:
    per_step, ratio = found["milliseconds_per_step"], found["ratio"]
    lines = [f"{found['machine']}; {found['rounds']} rounds of {found['steps_per_round']} steps", ""]
    lines += ["| | ms per step | more than plain | spent on looking, of the steps |", "|---|---|---|---|"]
    for name in per_step:
        more = "" if name == "plain" else f"{ratio[name] - 1:+.1%}"
        lines.append(f"| {name} | {per_step[name]:.2f} | {more} | {found['looking'][name]:.2%} |")
    writing, every = found["milliseconds_to_write_samples"], found["checkpoint_every"]
    share = writing / (every * per_step["plain"])
    lines += ["", f"writing the samples: {writing:.0f} ms, at a checkpoint every {every} steps {share:.2%} more"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 384), ("latents", 3072), ("k", 16), ("batch", 1024), ("rows", 65_536)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--every", type=int, default=100, help="steps between reports: the length of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    shape = Shape(options.width, options.latents, options.k, options.batch, options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), shape, options.every, options.rounds, options.warmup)
    print(text(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
