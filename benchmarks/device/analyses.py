"""Analysis on the device against the CPU: figures within rounding, which one is faster, and whether pairs should move.

The package sums over pairs on the CPU. `ScatteredPairs` does so on the device; it belongs in the package once this
section shows that it is faster.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.analyze import draw
from sparse_pipeline.analyze.config import AnalyzeConfig, default_report
from sparse_pipeline.analyze.reports.correlation.pair_sums import PairSums
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.codes.parallel import threads

from .record import Record
from .scattered_pairs import ScatteredPairs
from .setting import Setting, synchronise
from .trainings import trained


def analyses(record: Record, setting: Setting) -> None:
    """Pair sums at two widths, then one whole analysis."""
    for latents in setting.of((96,), (4608, 18_432)):
        with record.part(f"pairs of {latents} latents"):
            _pairs(record, setting, latents)
    with record.part("the pass"):
        _whole(record, setting)


def _pairs(record: Record, setting: Setting, latents: int) -> None:
    """Both on the same codes, from host memory until the sums lie where they are computed."""
    rows = setting.of(2000, 32_768)
    codes = draw(rows, latents, setting.of(8, 48), setting.seed)
    PairSums(latents).add(draw(64, latents, 4, 1))  # compiles
    ScatteredPairs(latents, setting.device).add(draw(64, latents, 4, 1))
    ours, theirs = PairSums(latents), ScatteredPairs(latents, setting.device)
    synchronise(setting)
    began = time.perf_counter()
    ours.add(codes)
    ours.flush()
    middle = time.perf_counter()
    theirs.add(codes)
    synchronise(setting)
    ended = time.perf_counter()
    seconds = {
        f"cpu, {threads()} threads": middle - began,
        f"scattered on {setting.device.type}": ended - middle,
    }
    per_million = {place: round(1e6 * value / rows, 2) for place, value in seconds.items()}
    record.put(f"pairs of {latents} latents, s per million rows", per_million)
    block = next(ours.blocks())
    upper = np.triu(np.ones_like(block.counts, bool))
    counts, sums = (one[: block.stop].cpu().numpy() for one in (theirs.counts, theirs.sums))
    record.check(f"counts of {latents} latents", bool((block.counts == counts)[upper].all()))
    error = float(np.abs((block.sums - sums)[upper]).max() / np.abs(block.sums[upper]).max())
    record.check(f"sums of {latents} latents", error < 1e-12, f"{error:.1e} of the largest")


def _whole(record: Record, setting: Setting) -> None:
    """The reconstruction and correlation reports of a trained run."""
    run = trained(setting)
    figures: dict[str, dict[str, Any]] = {}
    for place in dict.fromkeys((setting.device.type, "cpu")):
        config = AnalyzeConfig(
            out=setting.memory / "reports",
            name=place,
            controls=False,
            compare=False,
            device=place,
            max_tokens=setting.of(2048, 24_576),
            reports={name: default_report(name) for name in ("global", "correlation")},
        )
        result = analyze([run], config)
        record.put(f"analysis on {place}, s", round(result.seconds, 1))
        (found,) = result.figures.values()
        figures[place] = {key: figure.value for key, figure in found.items() if isinstance(figure.value, (int, float))}
    expected, found = figures["cpu"], figures[setting.device.type]
    off = {
        key: (found.get(key), value)
        for key, value in expected.items()
        if key not in found or abs(found[key] - value) > 0.02 * max(abs(found[key]), abs(value), 1e-6)
    }
    record.check("figures within 2 % of the CPU's", bool(expected) and not off, off or f"{len(expected)} figures")
