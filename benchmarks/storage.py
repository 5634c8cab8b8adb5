"""What each storage costs: bytes, the error of the rows, and the FVU of coders trained on them.

    python -m benchmarks.storage [--tokens 262144] [--site layer_02.resid_mid] [--folder .] [--json FILE]

Harvests the same rows of the embedded model as float32, bfloat16, int8 and fp8. The error of a row is ‖x̂ − x‖ / ‖x‖,
x from the float32 cache; position 0 (BOS) stands apart from the rest. A TopK and a Matryoshka coder are trained on each
cache with the same seed, so with the same initial weights and batches, and evaluated on the same held-out rows of the
bfloat16 cache. The last line is bfloat16 again with another seed: what chance alone changes. Everything it writes is
removed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparse_pipeline.harvest.config import HarvestConfig, Storage
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.cache import Cache, open_cache
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.evaluate import evaluate, evaluation_rows
from sparse_pipeline.train.loop import train

STORAGES: tuple[Storage, ...] = ("float32", "bfloat16", "int8", "fp8")
ARCHITECTURES = ("topk", "matryoshka")


def errors(exact: Cache, stored: Cache, site: str) -> dict[str, dict[str, float]]:
    """Relative error of the rows, by class: its root mean square and its maximum."""
    parts: dict[str, list[torch.Tensor]] = {"first": [], "rest": []}
    for shard in exact.shards:
        x, y = exact.chunk(site, shard).double(), stored.chunk(site, shard).double()
        off = (y - x).norm(dim=1) / x.norm(dim=1)
        first = torch.arange(len(off)) % exact.ctx == 0
        parts["first"].append(off[first])
        parts["rest"].append(off[~first])
    joined = {name: torch.cat(values) for name, values in parts.items()}
    return {name: {"rms": float(v.square().mean().sqrt()), "max": float(v.max())} for name, v in joined.items()}


def train_on(cache: Cache, site: str, seed: int, truth: Cache, folder: Path) -> dict[str, float | None]:
    """Held-out FVU excluding position 0, on the truth's rows, of each architecture."""
    configs = [
        validate(
            TrainConfig,
            {
                "cache": str(cache.path),
                "runs": str(folder),
                "name": name,
                "source": site,
                "target": None,
                "seed": seed,
                "data": {"seed": seed},
                "coder": {"architecture": name},
                "device": "cpu",
            },
        )
        for name in ARCHITECTURES
    ]
    train(configs, Console())
    rows = evaluation_rows(split_rows(truth, configs[0].data.heldout), configs[0].eval_rows)
    coders = [(open_run(config.path).load_coder(), site, site) for config in configs]
    found = evaluate(coders, truth, rows)
    return {name: one.fvu for name, one in zip(ARCHITECTURES, found, strict=True)}


def measure(tokens: int, site: str, folder: Path) -> list[dict[str, Any]]:
    """One row of the table for each storage, and one for another seed."""
    base = HarvestConfig(tokens=tokens, sites=(site,), device="cpu", cache_dir=folder / "cache")
    caches = {name: open_cache(harvest(replace(base, storage=name)).path) for name in STORAGES}
    found = []
    for name, seed in [*((name, 0) for name in STORAGES), ("bfloat16", 1)]:
        cache = caches[name]
        found.append(
            {
                "storage": name,
                "seed": seed,
                "bytes_per_row": cache.sites[site].row_bytes,
                "error": errors(caches["float32"], cache, site),
                "fvu": train_on(cache, site, seed, caches["bfloat16"], folder / f"{name}-{seed}"),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def text(found: list[dict[str, Any]]) -> str:
    lines = [
        "| storage | bytes a row | error, position 0 | worst | error, the rest | worst | FVU topk | FVU matryoshka |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        name = row["storage"] + (f", seed {row['seed']}" if row["seed"] else "")
        shown = [f"{row['error'][part][what]:.2%}" for part in ("first", "rest") for what in ("rms", "max")]
        fvu = [f"{row['fvu'][name]:.4f}" for name in ARCHITECTURES]
        lines.append(f"| {' | '.join([name, str(row['bytes_per_row']), *shown, *fvu])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--site", default="layer_02.resid_mid")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        found = measure(options.tokens, options.site, Path(scratch))
    print(text(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
