"""What every test may rely on: one thread, no network, no account, a fixed seed, and GPU tests that skip cleanly."""

from __future__ import annotations

import os
import sys

# Before any library is imported: nothing here may look at a hub or an account.
# One thread here and in every process that a test starts, for torch, BLAS and the kernels of shared/codes/parallel.py:
# the tests' tensors are small, and pytest's workers already fill the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it in its workers, and messages would be folded to that width
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command does: several test processes share the cores
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The expected figures are a CPU's, and `device: auto` would take a GPU where there is one. For those that want it:
# PIPELINE_TEST_DEVICE=cuda pytest -m gpu, and the same for tests/train/kernels.
if os.environ.get("PIPELINE_TEST_DEVICE") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser import started

# Without a device the kernels of train/kernels run in Triton's interpreter. Triton reads this where a function is
# defined, its own functions too, so it stands before whatever imports Triton first (torch does, to compile).
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and PIPELINE_TEST_DEVICE=cuda"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread, before any fixture: what a test finds does not hang on the tests that ran before it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The global generators start every test from the same state, so that no test's result hangs on the order."""
    torch.manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


WORKSHOP = """
harvest: {tokens: 12_288, ctx: 64, batch_tokens: 2048, shard_rows: 2048, name: demo}
train:
  coder: {latents: 128, k: 8}
  data: {batch_size: 256, epochs: 2}
  min_steps: 20
  log_every: 20
  checkpoint_every: 30
analyze: {name: demo}
"""


SWEEP = """
sweep: {name: width, variants: {topk: topk, nested: matryoshka}, grid: {coder.latents: [64, 128]}, plots: [png]}
train: {data: {epochs: 1}}
analyze: {controls: false, reports: {top_activations: null, position: null}}
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, for tests that are marked `needs_chromium`."""
    with started() as driver:
        yield driver


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it after an afternoon: settings, a text, a sweep file, a cache named demo, two runs.

    Copy it before changing anything in it.
    """
    import json

    from sparse_pipeline import pipeline

    folder = tmp_path_factory.mktemp("workshop")
    (folder / "pipeline.yaml").write_text(WORKSHOP, encoding="utf-8")
    (folder / "width.yaml").write_text(SWEEP, encoding="utf-8")
    texts = (f"The {n}th document says that {n} plus {n} is {2 * n}. " * 12 for n in range(60))
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert pipeline.run(["harvest"]) == 0
        assert pipeline.run(["train", "--variant", "topk", "--variant", "matryoshka"]) == 0
    finally:
        os.chdir(before)
    return folder
