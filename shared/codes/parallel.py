"""Work over latents, shared between threads without locks.

Every compiled kernel takes a range of latents and touches only the output rows of that range, so the result does not
depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


def threads() -> int:
    """How many threads share the kernels' work: the processors this process may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, int(limit)) if limit.isdigit() and int(limit) > 0 else available


@cache
def _pool(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="kernel")


def over_latents(kernel: Callable[[int, int], object], weight: NDArray[Any]) -> None:
    """Call kernel(first, stop) on ranges that cover all latents and weigh about the same.

    Args:
        weight: [F] the work that each latent takes, ≥ 0.
    """
    n_latents, n_threads = len(weight), threads()
    pieces = 4 * n_threads if n_threads > 1 else 1
    load = np.cumsum(weight, dtype=np.float64)
    total = load[-1] if n_latents else 0.0
    if total <= 0:
        return
    cuts = np.searchsorted(load, total * np.arange(1, pieces) / pieces, side="left") + 1
    bounds = np.unique(np.concatenate([[0], cuts, [n_latents]]).clip(0, n_latents)).tolist()
    spans = list(pairwise(bounds))
    if len(spans) == 1:
        kernel(*spans[0])
    else:
        list(_pool(n_threads).map(lambda span: kernel(*span), spans))
