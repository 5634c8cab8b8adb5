"""What each penalty adds to a training step: plain TopK and TopK with every penalty alone, as the variants have them.

    python -m benchmarks.penalties                                              # planted features, d = 384, F = 3,072
    python -m benchmarks.penalties --cache cache/NAME --source layer_03.resid_mid --latents 2048

Every contender trains its own coder on the same batches, loaded beforehand, taking turns in blocks of ten steps, in a
new order each time: what else the machine does falls on all. What a penalty costs depends on what the coder has
learned (how many pairs of latents are near its threshold), so the first rounds train without being counted. Figures
are medians over rounds of the time of a step and of its ratio to the plain one in the same round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.monitoring import BLOCK, SITE, Shape, batches, block, machine, write_cache
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.config.settings import load_yaml, merge, to_dict, validate
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.plan import plan
from sparse_pipeline.train.runs.session import Session, begin, open_runs

VARIANTS = Path(__file__).resolve().parent.parent / "train/variants"


def contenders(only: str) -> dict[str, dict[str, Any]]:
    """Variant's name → its train settings: TopK, and TopK with one penalty each."""
    found = {path.stem: load_yaml(path) for path in sorted(VARIANTS.glob("topk-*.yaml"))}
    return {"topk": {}} | {name: settings for name, settings in found.items() if only in name}


def begin_all(folder: Path, cache: Path, source: str, shape: Shape, only: str) -> dict[str, Session]:
    """Every contender at its start."""
    plain = TrainConfig(
        cache=cache,
        source=source,
        target=None,
        runs=folder / "runs",
        coder=TopKConfig(latents=shape.latents, k=shape.k),
        data=DataConfig(batch_size=shape.batch, tokens=10**9, heldout=0.0),
        device="cpu",
    )
    configs = [
        validate(TrainConfig, merge(to_dict(plain), {**settings, "name": name}, like=TrainConfig))
        for name, settings in contenders(only).items()
    ]
    (group,) = plan(configs).groups
    runs = open_runs([group], resume=False)
    thread = ThreadPoolExecutor(1)  # for checkpoints, of which none is due
    return {config.run_name: begin(group, config, runs[config.path], thread) for config in configs}


def measure(sessions: dict[str, Session], cache: Path, source: str, blocks: int, rounds: int, warmup: int) -> Any:
    """Seconds of a step by contender, one figure for each counted round of `blocks` blocks."""
    data = batches(sessions["topk"], cache, source)
    order = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(warmup + rounds):
        seconds = dict.fromkeys(sessions, 0.0)
        for _ in range(blocks):
            for name in order.sample(list(sessions), len(sessions)):
                seconds[name] += block(sessions[name], data)[0]
        if number >= warmup:
            for name, value in seconds.items():
                taken[name].append(value / (blocks * BLOCK))
    return taken


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 384), ("latents", 3072), ("k", 16), ("batch", 1024), ("rows", 65_536)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cache", type=Path, help="train on this cache instead of planted features")
    parser.add_argument("--source", default=SITE, help="its site")
    parser.add_argument("--only", default="", help="only penalties whose variant's name contains this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=7, help="rounds that are not counted")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of ten steps in a round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    shape = Shape(options.width, options.latents, options.k, options.batch, options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cache = options.cache
        if cache is None:
            cache = folder / "cache"
            write_cache(cache, shape)
        sessions = begin_all(folder, cache, options.source, shape, options.only)
        taken = measure(sessions, cache, options.source, options.blocks, options.rounds, options.warmup)
    print(f"{machine()}; {options.rounds} rounds of {options.blocks * BLOCK} steps, after {options.warmup} uncounted\n")
    print("| | ms per step | more than plain (quartiles) |\n|---|---|---|")
    found = {}
    for name, values in taken.items():
        ratios = [a / b for a, b in zip(values, taken["topk"], strict=True)]
        low, middle, high = (100 * (q - 1) for q in statistics.quantiles(ratios, n=4)) if name != "topk" else (0, 0, 0)
        found[name] = {"milliseconds": 1e3 * statistics.median(values), "ratios": ratios}
        more = "" if name == "topk" else f"{middle:+.1f} % ({low:+.1f} … {high:+.1f})"
        print(f"| {name} | {found[name]['milliseconds']:.2f} | {more} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
