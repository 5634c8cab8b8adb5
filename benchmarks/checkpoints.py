"""How long a checkpoint stops training: written in the loop, and beside it.

    python -m benchmarks.checkpoints [--width 2304] [--latents 18432] [--device cpu] [--json FILE]

One TopK SAE trains as in `benchmarks.train_step`. Checkpoints of it, with Adam's moments, are written in turns in two
ways: in the loop, which waits until the files are on disk; and on another thread from a copy of the tensors
(`train.runs.saving`). Printed for each way: how long the loop stands still, how long until the files are on disk, and
how long the steps take meanwhile, beside the steps before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sparse_pipeline.shared.runs.folder import Run, create_run
from sparse_pipeline.shared.runs.records import records_of
from sparse_pipeline.train.runs.checkpoint import capture
from sparse_pipeline.train.runs.saving import Saving, writing
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.trainee import Trainee

from .train_step import BATCHES, Data, Shape, our_batch, our_trainee


def in_the_loop(run: Run, trainee: Trainee) -> None:
    found = capture(trainee, {})
    run.save_checkpoint(found.step, found.coder, found.optimizer, found.state, 2, records_of(run.path))


def measured(run: Run, trainee: Trainee, step: Callable[[], None], rounds: int) -> dict[str, dict[str, float]]:
    """Way → milliseconds: median over the rounds."""
    found: dict[str, dict[str, list[float]]] = {
        way: {"pause": [], "until on disk": [], "step meanwhile": []} for way in ("in the loop", "beside")
    }
    found["beside"]["first pause"] = []
    plain = []
    device = trainee.coder.b_enc.device

    def timed(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - began)

    with writing() as thread:
        saving = Saving(run, thread, device)
        found["beside"]["first pause"].append(timed(lambda: saving.save(trainee, {})))  # takes memory for the copies
        saving.wait()
        for _ in range(rounds):
            plain += [timed(step) for _ in range(3)]
            trainee.step += 1
            found["in the loop"]["pause"].append(timed(lambda: in_the_loop(run, trainee)))
            found["in the loop"]["until on disk"].append(found["in the loop"]["pause"][-1])
            plain += [timed(step) for _ in range(3)]
            trainee.step += 1
            began = time.perf_counter()
            found["beside"]["pause"].append(timed(lambda: saving.save(trainee, {})))
            while saving.writing:
                found["beside"]["step meanwhile"].append(timed(step))
            saving.wait()
            found["beside"]["until on disk"].append(1e3 * (time.perf_counter() - began))
    medians = {
        way: {name: statistics.median(values) for name, values in figures.items() if values}
        for way, figures in found.items()
    }
    return {"plain": {"step": statistics.median(plain)}, **medians}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--latents", type=int, default=18432)
    parser.add_argument("--k", type=int, default=48)
    parser.add_argument("--batch", type=int, default=256, help="rows of a training batch")
    parser.add_argument("--rounds", type=int, default=3, help="checkpoints of each kind; the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write: the disk that is measured")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    options = parser.parse_args(arguments)

    shape = Shape(options.width, options.latents, options.k, options.batch, options.device)
    data = Data(shape)
    trainee = our_trainee(shape, data, "TopK SAE", "auto")
    rows = [our_batch(x, x) for x in data.x]
    count = iter(range(10**9))

    def step() -> None:
        train_step(trainee, rows[next(count) % BATCHES])

    for _ in range(2):
        step()
    with tempfile.TemporaryDirectory(prefix="checkpoints-", dir=options.folder) as folder:
        run = create_run(folder, "run", {}, {})
        found: dict[str, Any] = measured(run, trainee, step, options.rounds)
        newest = run.checkpoints()[-1]
        n_bytes = sum(file.stat().st_size for file in newest.iterdir())
    found["checkpoint_bytes"] = n_bytes
    print(f"d = {shape.width}, F = {shape.latents}, checkpoint of {n_bytes / 1e6:.0f} MB, {options.device}")
    print(f"a step alone: {found['plain']['step']:.0f} ms")
    print(
        f"\n{'written':14s} {'the loop stands still, ms':>26s} {'until on disk, ms':>18s} {'a step meanwhile, ms':>21s}"
    )
    for way in ("in the loop", "beside"):
        one = found[way]
        meanwhile = f"{one['step meanwhile']:.0f}" if "step meanwhile" in one else "–"
        print(f"{way:14s} {one['pause']:26.1f} {one['until on disk']:18.0f} {meanwhile:>21s}")
    print(f"the first one beside, which takes the memory of the copies: {found['beside']['first pause']:.0f} ms")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
