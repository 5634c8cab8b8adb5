"""Exact correlation against SciPy's sparse XᵀX, and the rate of the whole pass.

    python -m benchmarks.analyze [--rows 131072] [--k 48] [--latents 4608 18432] [--pass-rows 65536] [--json FILE]

Codes are drawn, not trained: k latents a row, frequencies falling as 1/√rank, exponential values. For each dictionary
size it measures, in one run and on the same codes, SciPy's XᵀX (one thread; Σ z_i z_j alone) and ours (Σ z_i z_j and
n_ij, so twice the answer) on one thread and on all. Ours adds into a triangle that stays; its memory follows from its
shapes, SciPy's is that of the result it returns. The largest difference between the two answers is printed too. Where
SAEDashboard is installed, its dense RollingCorrCoef gets the first 2,048 rows, on all cores. Then the whole analysis,
four reports, of a TopK coder with random weights over a made-up cache: tokens per second.

The first calls load the kernels; they are made before the clock starts. Each figure is given in seconds of the clock
and, in brackets, of the processor; the best of --repeats. On a shared machine only the latter means much, and only
against the other line of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.correlation.pair_sums import PairSums
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec, open_cache
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.codes import parallel
from sparse_pipeline.shared.codes.sparse import SparseCodes
from sparse_pipeline.shared.runs.folder import create_run

SHARD = 8192

DENSE_ROWS = 2048
"""Rows that the dense peer gets; its time is proportional to them."""


def draw(rows: int, n_latents: int, k: int, seed: int = 0) -> SparseCodes:
    """Codes with at most k latents a row (a latent drawn twice counts once)."""
    rng = np.random.default_rng(seed)
    weight = np.arange(1, n_latents + 1) ** -0.5
    edges = np.cumsum(weight / weight.sum())
    names = rng.permutation(n_latents).astype(np.int32)
    latents = np.sort(names[np.searchsorted(edges, rng.random((rows, k))).clip(max=n_latents - 1)], axis=1)
    fresh = np.ones(latents.shape, np.bool_)
    fresh[:, 1:] = latents[:, 1:] != latents[:, :-1]
    values = (rng.exponential(1.0, latents.shape) + 0.01).astype(np.float32)
    indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(fresh.sum(axis=1), out=indptr[1:])
    return SparseCodes(indptr, latents[fresh], values[fresh], n_latents)


def best_of(repeats: int, run: Callable[[], Any]) -> tuple[float, float]:
    """The least seconds of several calls: (clock, processor)."""
    clock, processor = [], []
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        run()
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
    return min(clock), min(processor)


def use_threads(n: int) -> None:
    """Let the kernels use n threads from now on."""
    pool = ThreadPoolExecutor(n)
    parallel.threads.cache_clear()
    os.environ["OMP_NUM_THREADS"] = str(n)
    parallel._pool = lambda: pool  # type: ignore[assignment]


def saedashboard(codes: SparseCodes, rows: int) -> tuple[float, float] | None:
    """Seconds (clock, processor) of SAEDashboard's RollingCorrCoef on the first rows, dense; None: not installed."""
    try:
        from sae_dashboard.utils_fns import RollingCorrCoef
    except ImportError:
        return None
    dense = torch.from_numpy(codes.csr()[:rows].toarray().T.copy())
    rolling = RollingCorrCoef(with_self=True)
    return best_of(1, lambda: rolling.update(dense, dense))


def correlation(rows: int, n_latents: int, k: int, repeats: int) -> dict[str, Any]:
    """One dictionary size."""
    codes = draw(rows, n_latents, k)
    parts = [codes.rows(np.arange(rows) // SHARD == shard) for shard in range(-(-rows // SHARD))]
    pairs = PairSums(n_latents)

    def ours() -> None:
        for part in parts:
            pairs.add(part)
        pairs.flush()

    cores = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {
        "latents": n_latents,
        "k": k,
        "rows": rows,
        "pair_sums_bytes": PairSums.bytes_needed(n_latents),
    }
    ours()
    for n in sorted({1, cores}):
        use_threads(n)
        clock, processor = (seconds / rows * 1e6 for seconds in best_of(repeats, ours))
        found[f"ours_{n}_threads"], found[f"ours_{n}_threads_processor"] = clock, processor
    matrix = codes.csr()
    answer: list[Any] = []

    def scipys() -> None:
        answer[:] = [matrix.T @ matrix]

    found["scipy"], found["scipy_processor"] = (seconds / rows * 1e6 for seconds in best_of(1, scipys))
    product = answer[0].tocsr()
    found["scipy_bytes"] = product.data.nbytes + product.indices.nbytes + product.indptr.nbytes
    fresh = PairSums(n_latents)
    for part in parts:
        fresh.add(part)
    block = next(fresh.blocks())
    theirs = product[block.first : block.stop].toarray()[:, block.first :]
    found["largest_difference"] = float(np.abs(np.triu(block.sums) - np.triu(theirs)).max() / np.abs(theirs).max())
    torch.set_num_threads(cores)
    peer = saedashboard(codes, min(rows, DENSE_ROWS))
    if peer is not None:
        found["saedashboard"], found["saedashboard_processor"] = (s / min(rows, DENSE_ROWS) * 1e6 for s in peer)
    found["speed_up_1_thread"] = found["scipy_processor"] / found["ours_1_threads_processor"]
    return found


def whole_pass(rows: int, width: int = 384, n_latents: int = 3072, k: int = 16, ctx: int = 128) -> dict[str, Any]:
    """All four reports of one coder over a made-up cache."""
    with tempfile.TemporaryDirectory() as folder:
        site = SiteSpec("layer_00.resid_mid", width, module_path="-", layer=0, kind="resid_mid")
        layout = Layout(rows // ctx, ctx, sites=(site,))
        rng = np.random.default_rng(0)
        with CacheWriter.create(
            Path(folder) / "cache", layout, {"made_by": "benchmarks.analyze", "rows": rows}, {}
        ) as writer:
            for shard in writer.missing_shards():
                shape = (len(layout.seqs_of(shard)), ctx)
                acts = torch.from_numpy(rng.standard_normal((shape[0] * ctx, width)).astype(np.float32)).bfloat16()
                flags = np.zeros(shape, np.uint8)
                flags[:, 0] = 1
                doc = np.repeat(np.arange(shape[0], dtype=np.uint32)[:, None] + shard * shape[0], ctx, 1)
                position = np.tile(np.arange(ctx, dtype=np.uint16), (shape[0], 1))
                writer.write_shard(
                    shard,
                    tokens=rng.integers(0, 5000, shape, dtype=np.int32),
                    doc_id=doc,
                    pos_in_doc=position,
                    flags=flags,
                    acts={site.name: acts},
                )
            writer.finish()
        cache = open_cache(Path(folder) / "cache")
        coder = build_coder(TopKConfig(latents=n_latents, k=k), width, width, tied=True)
        run = create_run(Path(folder) / "runs", "made_up", {}, {})
        where = {"path": str(cache.path), "identity": cache.identity}
        run.finish(coder, {}, {"source": site.name, "target": site.name, "cache": where})
        config = AnalyzeConfig(out=Path(folder) / "reports", controls=False)
        analyze([run.path], AnalyzeConfig(out=Path(folder) / "reports", controls=False, max_tokens=SHARD))
        seconds = analyze([run.path], config).seconds
        return {"rows": rows, "latents": n_latents, "k": k, "seconds": seconds, "tokens_per_second": rows / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--k", type=int, default=48)
    parser.add_argument("--latents", type=int, nargs="+", default=[4608, 18_432])
    parser.add_argument("--pass-rows", type=int, default=65_536, help="0: leave the whole pass out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    results: dict[str, Any] = {"cores": cores, "load": os.getloadavg()[0], "correlation": []}
    print(f"{cores} cores, load {results['load']:.1f}; seconds of the clock (of the processor) per million rows")
    for n_latents in args.latents:
        found = correlation(args.rows, n_latents, args.k, args.repeats)
        results["correlation"].append(found)
        ours = ", ".join(
            f"{found[f'ours_{n}_threads']:.1f} ({found[f'ours_{n}_threads_processor']:.1f}) on {n}"
            for n in sorted({1, cores})
        )
        print(
            f"F {n_latents:>6}, k {args.k}: ours {ours}; SciPy {found['scipy']:.1f} ({found['scipy_processor']:.1f}); "
            + (
                f"SAEDashboard {found['saedashboard']:.0f} ({found['saedashboard_processor']:.0f}); "
                if "saedashboard" in found
                else ""
            )
            + f"{found['speed_up_1_thread']:.1f}x by processor on one thread; "
            f"memory {found['pair_sums_bytes'] / 1e9:.2f} GB against {found['scipy_bytes'] / 1e9:.2f}; "
            f"largest difference {found['largest_difference']:.1e}"
        )
    use_threads(cores)
    if args.pass_rows:
        results["pass"] = whole_pass(args.pass_rows)
        print(
            "all reports, F {latents}, k {k}: {tokens_per_second:,.0f} tokens/s ({seconds:.1f} s)".format(
                **results["pass"]
            )
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
