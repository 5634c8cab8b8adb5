"""What the random projection of the self-contrastive penalty saves, and what it misses.

    python -m benchmarks.self_contrastive                              # 2,304 latents of width 2,304 (Gemma-2-2B)
    python -m benchmarks.self_contrastive --width 128 --latents 1024   # the embedded model's width
    python -m benchmarks.self_contrastive --run runs/topk              # a trained coder's decoder

For each threshold: the penalty's value and gradient, without InfoNCE ("pairs") and with it ("whole"), by the exact form
and by projections to 64 and 128 dimensions whose pairs are scored again exactly. Each form is a process of its own; its
memory is how far the resident set grows beyond what it was before the first full-size call, its time the median of the
following calls. Recall is the share of pairs beyond the threshold that were nominated, "of the loss" the share of the
exact value that they carry, both averaged over five projections. Without --run, every second row of the decoder is made
beside the row before it, at cosines from 0.05 to 0.95.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.coders import Coder, Codes, build_coder, load_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.penalties import Penalty, StepBatch, build_penalty
from sparse_pipeline.train.penalties.self_contrastive import SelfContrastiveConfig, all_pairs, listed_pairs, nominate

FORMS = {"exact": None, "d = 64": 64, "d = 128": 128}
THRESHOLDS = (0.3, 0.05)


def planted_decoder(n_latents: int, width: int, seed: int = 0) -> Tensor:
    """[F, d] random unit rows; every second one at a cosine of 0.05 … 0.95, evenly spread, to the row before it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n_latents, width, generator=generator), dim=1)
    first, second = rows[0 : n_latents - 1 : 2], rows[1::2]
    cosine = torch.linspace(0.05, 0.95, len(second)).unsqueeze(1)
    beside = second - torch.linalg.vecdot(second, first).unsqueeze(1) * first
    rows[1::2] = cosine * first + (1 - cosine.square()).sqrt() * torch.nn.functional.normalize(beside, dim=1)
    return rows


def decoder_of(run: Path | None, n_latents: int, width: int) -> Tensor:
    """The decoder rows that are measured, [F, d]."""
    return planted_decoder(n_latents, width) if run is None else load_coder(run).w_dec.detach()


def quality(rows: Tensor, width: int | None, threshold: float, calls: int = 5) -> dict[str, float]:
    """Of one form: pairs beyond the threshold, pairs nominated, recall, and the share of the exact loss found.

    Args:
        rows: [F, d] decoder rows.
        width: of the projection; None: the exact form, which misses nothing.
    """
    rows = torch.nn.functional.normalize(rows, dim=1)
    cosines = (rows @ rows.T).triu(1)
    beyond = int((cosines > threshold).sum())
    value, _ = all_pairs(rows, threshold)
    if width is None:
        return {"beyond": beyond, "nominated": beyond, "recall": 1.0, "loss": 1.0}
    found = []
    most = SelfContrastiveConfig().max_pairs
    for seed in range(calls):
        projection = torch.randn(rows.shape[1], width, generator=torch.Generator().manual_seed(seed)) / width**0.5
        i, j, _ = nominate(rows @ projection, threshold, most)
        true = int((torch.linalg.vecdot(rows[i], rows[j]) > threshold).sum())
        share = float(listed_pairs(rows, i, j, threshold) / value) if value > 0 else 1.0
        found.append((len(i), true / max(beyond, 1), share))
    nominated, recall, loss = np.mean(found, axis=0).tolist()
    return {"beyond": beyond, "nominated": nominated, "recall": recall, "loss": loss}


def cost(rows: Tensor, width: int | None, threshold: float, batch: int, k: int, calls: int = 5) -> dict[str, float]:
    """Seconds (median) and peak bytes of value and gradient: of the pairs alone, and with InfoNCE.

    Args:
        rows: [F, d] decoder rows.
        batch, k: rows of a batch, and latents active on each.
    """
    n_latents, d = rows.shape
    coder = build_coder(TopKConfig(latents=n_latents, k=min(k, n_latents)), d, d, tied=True)
    with torch.no_grad():
        coder.w_dec.copy_(rows)
    small = build_coder(TopKConfig(latents=32, k=2), d, d, tied=True)
    firings, few = _firings(n_latents, batch, k), _firings(32, 16, 2)
    found: dict[str, float] = {}
    for part, contrastive in (("pairs", 0.0), ("whole", 0.3)):
        settings = {"threshold_start": threshold, "threshold_end": threshold, "contrastive_weight": contrastive}
        penalty = build_penalty(SelfContrastiveConfig(projection=width, **settings))  # type: ignore[arg-type]
        _call(penalty, small, few)  # what is loaded and compiled once is no part of the figures
        before = _reset_peak()
        seconds = []
        for call in range(calls + 1):
            began = time.perf_counter()
            _call(penalty, coder, firings)
            seconds.append(time.perf_counter() - began)
            if call == 0:
                found[f"{part}_peak"] = _peak() - before
        found[f"{part}_seconds"] = statistics.median(seconds[1:])
    return found


def _firings(n_latents: int, n_rows: int, k: int) -> tuple[Tensor, Tensor]:
    """(values, latents) [B, k] of random latents."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.rand(n_rows, n_latents, generator=generator).topk(min(k, n_latents), dim=1).indices
    return torch.rand(latents.shape, generator=generator), latents


def _call(penalty: Penalty, coder: Coder, firings: tuple[Tensor, Tensor]) -> None:
    values, latents = firings[0].clone().requires_grad_(), firings[1]
    zeros = torch.zeros(len(values), dtype=torch.int64)
    rows = Batch({}, zeros, zeros + 1, zeros, zeros, zeros, zeros)
    u, generator = torch.zeros(len(values), 1), torch.Generator().manual_seed(1)
    batch = StepBatch(u, u, rows, step=1000, total_steps=1000, generator=generator, ctx=2)
    penalty(batch, coder, Codes(values, latents, coder.n_latents)).backward()  # type: ignore[no-untyped-call]
    coder.zero_grad()


def _status(key: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _reset_peak() -> int:
    """Forget the peak of the resident set; what it is now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _measured_apart(arguments: Sequence[str], form: str, threshold: float) -> dict[str, float]:
    # Freed blocks go back to the system at once, so that the resident set says what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.self_contrastive", *arguments, "--one", form, str(threshold)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(out.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--latents", type=int, default=2304)
    parser.add_argument("--batch", type=int, default=1024, help="rows of a batch")
    parser.add_argument("--k", type=int, default=48, help="latents active on each")
    parser.add_argument("--run", type=Path, help="a run, whose decoder is measured")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--one", nargs=2, metavar=("FORM", "THRESHOLD"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    rows = decoder_of(given.run, given.latents, given.width)
    if given.one:
        form, threshold = given.one
        print(json.dumps(cost(rows, FORMS[form], float(threshold), given.batch, given.k)))
        return
    found: list[dict[str, Any]] = []
    print(f"{len(rows):,} latents of width {rows.shape[1]:,}, batch {given.batch:,}, {torch.get_num_threads()} threads")
    head = ("θ", "form", "ms, pairs", "MiB", "ms, whole", "MiB", "beyond θ", "nominated", "recall", "of the loss")
    print(" ".join(f"{name:>11}" for name in head))
    for threshold in THRESHOLDS:
        for form, width in FORMS.items():
            line = _measured_apart(arguments, form, threshold) | quality(rows, width, threshold)
            found.append({"threshold": threshold, "form": form, **line})
            cells = [f"{threshold}", form]
            for part in ("pairs", "whole"):
                cells += [f"{line[f'{part}_seconds'] * 1e3:.1f}", f"{line[f'{part}_peak'] / 2**20:.1f}"]
            cells += [f"{line[name]:,.0f}" for name in ("beyond", "nominated")]
            cells += [f"{line[name]:.3f}" for name in ("recall", "loss")]
            print(" ".join(f"{cell:>11}" for cell in cells))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
