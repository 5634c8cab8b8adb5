"""A tiny cache and a tiny run, how each is made and finished, and what of their bytes must come back after a fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.loop import train
from sparse_pipeline.train.samples.config import SamplesConfig
from tests.shared.cache.folders import contents
from tests.synthetic import make_cache, sparse_acts, token_table, write_missing

SITE, QUANTISED = "layer_01.resid_mid", "layer_01.mlp_out"
TABLE = token_table(22, 16, packing="document")
ACTS = sparse_acts(TABLE, {SITE: 8, QUANTISED: 8})
SPECS = (SiteSpec(SITE, 8, layer=1, kind="resid_mid"), SiteSpec(QUANTISED, 8, layer=1, kind="mlp_out", quantised="fp8"))
LAYOUT = Layout(22, 16, 128, SPECS)
TIMED = ("tokens_per_second", "wait_share", "seconds", "started", "finished", "peak_memory")


def write_cache(path: Path) -> None:
    """Writes the cache, or what is missing of it: three shards, the last one short."""
    with CacheWriter.create(path, LAYOUT, {"harvest": {"model": "m"}}, {"made_by": "tests"}) as writer:
        write_missing(writer, TABLE, ACTS)
        if not writer.complete:
            writer.finish()


def settings(folder: Path, **changes: Any) -> TrainConfig:
    """A run of 24 steps, with samples and three checkpoints."""
    if not (folder / "data").exists():
        make_cache(folder / "data", 96, 16, {SITE: 8})
    made: dict[str, Any] = {
        "cache": folder / "data",
        "source": SITE,
        "target": None,
        "runs": folder / "runs",
        "name": "run",
        "coder": TopKConfig(latents=16, k=2),
        "data": DataConfig(batch_size=64, epochs=1, workers=1),
        "min_steps": 2,
        "log_every": 4,
        "checkpoint_every": 8,
        "samples": SamplesConfig(),
    }
    return TrainConfig(**{**made, **changes})


def train_run(folder: Path) -> None:
    """Trains the run, or resumes it."""
    train([settings(folder)], resume=True)


def comparable(files: dict[str, bytes]) -> dict[str, bytes]:
    """A run's files without what measures time, and without the hashes of such files; broken ones as they are."""
    found = {}
    for name, data in files.items():
        try:
            found[name] = _untimed(name, data)
        except ValueError:
            found[name] = data
    return found


def _untimed(name: str, data: bytes) -> bytes:
    if name.endswith("metrics.jsonl"):
        lines = [json.loads(line) for line in data.splitlines()]
        return json.dumps([{k: v for k, v in line.items() if k not in TIMED} for line in lines]).encode()
    if name.endswith(("record.json", "provenance.json", "provenance.json.copy")):
        return json.dumps({k: v for k, v in json.loads(data).items() if k not in (*TIMED, "seal")}).encode()
    if name.endswith(("config.json", "state.json")):
        document = {k: v for k, v in json.loads(data).items() if k not in ("seal", "files")}
        for part in ("summary", "state"):
            document.get(part, {}).pop("seconds", None)
        document.get("summary", {}).pop("record", None)
        return json.dumps(document, sort_keys=True).encode()
    return data


def restore(folder: Path, files: dict[str, bytes]) -> None:
    """The folder with exactly these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def lost(folder: Path, whole: dict[str, bytes]) -> list[str]:
    """Files of a finished run that differ from the undamaged one's. Checkpoints that were dropped may be missing."""
    now, then = comparable(contents(folder)), comparable(whole)
    return [name for name in then if now.get(name) != then[name] and not (name.startswith("check") and name not in now)]
