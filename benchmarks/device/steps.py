"""Milliseconds of a training step: against the floor, by part, and with everything that real runs switch on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import train_step as bench
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.train.kernels import lists, select
from sparse_pipeline.train.penalties.topk_pairs import TopkPairsConfig
from sparse_pipeline.train.penalties.tracked_pairs import TrackedPairsConfig
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.trainee import Trainee

from .record import Record
from .setting import FULL_K, FULL_LATENTS, FULL_WIDTH, Setting, free_device, graphed, steady, synced, synchronise

GOAL_MS = {1024: 1.3, 4096: 2.0, 16_384: 6.0}
"""Goals on one H200, by batch (docs/performance.md)."""
PEERS_MS = {
    "SAELens 6.54, matryoshka-batchtopk": {1024: 10.0, 4096: 18.0, 16_384: 51.7},
    "dictionary_learning 0.1, matryoshka": {1024: 7.5, 4096: 12.4, 16_384: 33.0},
    "sparsify 1.3, TopK transcoder (no nesting)": {1024: 4.1, 4096: 9.4, 16_384: 31.2},
}
"""The same shape, bfloat16 autocast, one H200, measured earlier (docs/performance.md)."""


def run_of(
    setting: Setting, batch: int, work: str = "Matryoshka transcoder", **settings: Any
) -> tuple[Trainee, list[Batch]]:
    """A run before its first step, and its batches, at the shape of the goal."""
    width, latents, k = setting.of((4, 8, 2), (FULL_WIDTH, FULL_LATENTS, FULL_K))
    shape = bench.Shape(width, latents, k, batch, setting.device.type)
    data = bench.Data(shape, seed=setting.seed)
    trainee = bench.our_trainee(shape, data, work, **{"fused": "on", "precision": "bfloat16", **settings})
    targets = data.y if "transcoder" in work else data.x
    return trainee, [bench.our_batch(x.bfloat16(), y.bfloat16()) for x, y in zip(data.x, targets, strict=True)]


def steps(record: Record, setting: Setting) -> None:
    """Plain steps at three batch sizes, then the variants at one."""
    if not setting.toy:  # clocks up, libraries loaded
        a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        steady(setting, lambda _: a @ a, 60)
    for batch in setting.of((2,), tuple(GOAL_MS)):
        with record.part(f"batch {batch}"):
            record.put(f"step, batch {batch}", _plain(setting, batch))
        free_device(setting)
    for name, (work, settings, dead) in _variants(setting).items():
        with record.part(name):
            record.put(name, _variant(setting, work, settings, dead))
        free_device(setting)


def _plain(setting: Setting, batch: int) -> dict[str, Any]:
    n = setting.of(1, 40)
    trainee, rows = run_of(setting, batch)
    fused = trainee.fused
    assert fused is not None

    def step(i: int) -> None:
        train_step(trainee, rows[i % len(rows)])

    found: dict[str, Any] = steady(setting, step, n, 8)
    found["synced_ms"] = synced(setting, step, n)
    width, latents, k = setting.of((4, 8, 2), (FULL_WIDTH, FULL_LATENTS, FULL_K))
    shape = bench.Shape(width, latents, k, batch, setting.device.type)
    data = bench.Data(shape)
    floor = {one.work: steady(setting, one.build(shape, data), n, 3)["ms"] for one in bench.FLOOR}
    found["floor_ms"] = round(sum(floor.values()), 4)
    found["over_floor"] = round(found["ms"] / found["floor_ms"], 3)
    found["floor"] = floor
    found["goal_ms"] = GOAL_MS.get(batch)
    found["peers_ms"] = {name: times.get(batch) for name, times in PEERS_MS.items()}
    train_step(trainee, rows[0], measure=True)
    found["gradient norm"], found["its bound"] = (float(fused.state[i]) for i in (2, 4))
    if not setting.toy:
        found["graph"] = fused.buffers.graph is not None
        found["peak, GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    found["parts"] = _parts(setting, trainee, n)
    return found


def _parts(setting: Setting, trainee: Trainee, n: int) -> dict[str, float]:
    """Milliseconds of each part of the fused step alone, as graphs."""
    fused = trainee.fused
    assert fused is not None
    b = fused.buffers
    parts: dict[str, Callable[[], object]] = {
        "encoder product": lambda: torch.addmm(fused.b_enc.compute, b.u, fused.w_enc.compute.T, out=b.pre),
        "selection": lambda: select.select(b.pre, b.codes),
        "decode and dL/dz": lambda: fused._decode(b, None),
        "lists": lambda: lists.build_lists(b.codes, b.lists),
        "lists, gradients, Adam": lambda: fused._update(b, None, {}, False),
    }
    with torch.no_grad(), fused._on_device():
        return {name: steady(setting, graphed(setting, part), n, 3)["ms"] for name, part in parts.items()}


def _variants(setting: Setting) -> dict[str, tuple[str, dict[str, Any], int]]:
    """Name → (work, settings, dead latents)."""
    latents, k, few, many = setting.of((8, 2, 2, 4), (FULL_LATENTS, FULL_K, 64, 4000))
    nested = "Matryoshka transcoder"
    tracked = TrackedPairsConfig(start=4, window=4, period=8, min_fired=2, min_both=1)
    return {
        "TopK SAE": ("TopK SAE", {}, 0),
        "BatchTopK inside": (nested, {"coder": MatryoshkaConfig(latents=latents, k=k, selection="batchtopk")}, 0),
        "float32 products": (nested, {"precision": "float32"}, 0),
        f"{few} dead latents": (nested, {}, few),
        f"{many} dead latents": (nested, {}, many),
        "tracked_pairs": (nested, {"penalties": {"tracked_pairs": tracked}}, 0),
        "topk_pairs": (nested, {"penalties": {"topk_pairs": TopkPairsConfig()}}, 0),
        f"tracked_pairs and {few} dead latents": (nested, {"penalties": {"tracked_pairs": tracked}}, few),
        "autograd": (nested, {"fused": "off"}, 0),
    }


def _variant(setting: Setting, work: str, settings: dict[str, Any], dead: int) -> dict[str, float]:
    trainee, rows = run_of(setting, setting.of(2, 4096), work, **settings)
    if dead:
        coder = trainee.coder
        coder.dead_after = 10**7
        with torch.no_grad():
            coder.since_fired[:dead] = 2 * 10**7
            coder.b_enc[:dead] = -50.0

    def step(i: int) -> None:
        train_step(trainee, rows[i % len(rows)])

    n = setting.of(1, 16)
    found = steady(setting, step, n, 8)
    found["synced_ms"] = synced(setting, step, n)
    synchronise(setting)
    return found


def curve(record: Record, setting: Setting) -> None:
    """Steps from the same start on the same batches, fused (bfloat16 copies) and autograd: the losses stay together."""
    n, batch = setting.of((2, 2), (200, 1024))
    curves: dict[str, list[float]] = {}
    for fused in ("on", "off"):
        with record.part(f"fused {fused}"):
            optimizer = bench.OptimizerConfig(lr=1e-3, warmup_steps=20)
            trainee, rows = run_of(setting, batch, fused=fused, optimizer=optimizer)
            losses = []
            for i in range(n):
                value = train_step(trainee, rows[i % len(rows)]).terms.values["reconstruction"]
                losses.append(value.detach().clone())
            curves[fused] = [float(value) for value in losses]
            record.put(f"loss, fused {fused}", [round(value, 5) for value in curves[fused][:: max(1, n // 8)]])
    if len(curves) == 2:
        pairs = list(zip(curves["on"], curves["off"], strict=True))[n // 2 :]
        off = max(abs(a / b - 1) for a, b in pairs)
        record.check("the fused step follows autograd (second half)", off < 0.02, f"{off:.2%} at most")
        first, last = curves["on"][0], curves["on"][-1]
        record.check("it learns", setting.toy or last < 0.9 * first, f"{first:.4f} to {last:.4f}")
