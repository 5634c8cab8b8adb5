"""Exact correlation of wide dictionaries: seconds per million rows and peak memory against the number of latents.

    python -m benchmarks.analyze_wide [--rows 100000] [--k 64] [--latents 4096 16384 65536 131072] [--json FILE]

Codes are drawn as in benchmarks.analyze, and some latents get a copy, so that there are pairs to find. Each size runs
in a process of its own, which keeps the codes in a file and scans their pairs, as the analysis does beyond
`triangle_gb`. A sample of latents is then checked against SciPy in float64: Σ z_i z_j and n_ij with every other latent,
their nearest latents, and the pairs beyond the threshold. The largest difference is printed.

Seconds are of the clock and, in brackets, of the processor. The first calls load the kernels before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.analyze import SHARD, draw
from sparse_pipeline.analyze.reports.correlation.kept_pairs import KeptPairs
from sparse_pipeline.analyze.reports.correlation.pair_sums import PairSums
from sparse_pipeline.analyze.reports.correlation.rows_apart import RowsApart
from sparse_pipeline.analyze.reports.correlation.scan import Scan
from sparse_pipeline.shared.codes.met_pairs import Asked
from sparse_pipeline.shared.codes.moments import CodeMoments
from sparse_pipeline.shared.codes.sparse import SparseCodes

ASKED = Asked(threshold=0.8, min_fired=50, min_both=10, listed=1_000_000)
NEIGHBOURS = 20
SAMPLE = 32
"""Latents checked against SciPy, half of them with a copy."""


def with_copies(codes: SparseCodes, n: int, seed: int = 1) -> SparseCodes:
    """The same codes, and for latents 0 … n − 1 a copy among the last n, 5 % apart."""
    row = np.repeat(np.arange(codes.n_rows), codes.l0)
    kept = codes.latents < codes.n_latents - n
    copied = kept & (codes.latents < n)
    noise = 1 + 0.05 * np.random.default_rng(seed).standard_normal(int(copied.sum()))
    rows = np.concatenate([row[kept], row[copied]])
    latents = np.concatenate([codes.latents[kept], codes.n_latents - n + codes.latents[copied]])
    values = np.concatenate([codes.values[kept], (codes.values[copied] * noise).astype(np.float32)])
    order = np.argsort(rows, kind="stable")
    indptr = np.zeros(codes.n_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=codes.n_rows), out=indptr[1:])
    return SparseCodes.sorted(indptr, latents[order].astype(np.int32), values[order], codes.n_latents)


def scanned(kept: KeptPairs, moments: CodeMoments) -> Scan:
    none = RowsApart(kept.n_latents)
    return kept.scan([moments, moments], none, none, ASKED, NEIGHBOURS)[0]


def largest_error(codes: SparseCodes, moments: CodeMoments, kept: KeptPairs, scan: Scan) -> tuple[float, int]:
    """(largest difference of r from SciPy's of the sampled latents; pairs beyond the threshold that they are in).

    Raises:
        AssertionError: another count, another neighbour, or another pair.
    """
    n_latents = codes.n_latents
    often = np.flatnonzero(moments.n >= ASKED.min_fired)
    sample = np.unique(np.concatenate([often[: SAMPLE // 2], often[len(often) // 2 :][: SAMPLE // 2]]))
    x = codes.csr().astype(np.float64).tocsc()
    fires = x.copy()
    fires.data[:] = 1.0
    worst, pairs = 0.0, 0
    everyone = np.arange(n_latents)
    # One lookup for all: it gathers the rows of each smaller latent once, and nearly every latent is one.
    looked_up = kept.lookup(np.repeat(sample, n_latents), np.tile(everyone, len(sample)))
    products, counts = (found.reshape(len(sample), n_latents) for found in looked_up)
    for at, i in enumerate(sample.tolist()):
        sums = np.asarray((x[:, [i]].T @ x).todense()).reshape(-1)
        both = np.asarray((fires[:, [i]].T @ fires).todense()).reshape(-1)
        others = everyone != i
        np.testing.assert_array_equal(counts[at, others], both[others])
        np.testing.assert_allclose(products[at, others], sums[others], rtol=1e-12)
        r = moments.pearson(np.full(n_latents, i), everyone, sums)
        scored = others & (both > 0) & (moments.n >= ASKED.min_fired)
        best = np.sort(r[scored])[::-1][:NEIGHBOURS]
        worst = max(worst, float(np.abs(scan.near_r[i, : len(best)] - best).max(initial=0)))
        above = np.flatnonzero(scored & (np.abs(r) > ASKED.threshold) & (both >= ASKED.min_both))
        listed = (scan.pairs == i).any(axis=1)
        np.testing.assert_array_equal(np.sort(scan.pairs[listed].sum(axis=1) - i), above)
        partner = scan.pairs[listed].sum(axis=1) - i
        worst = max(worst, float(np.abs(scan.r[listed] - r[partner]).max(initial=0)))
        pairs += len(above)
    return worst, pairs


def measure(rows: int, n_latents: int, k: int) -> dict[str, Any]:
    """One dictionary size, in this process."""
    codes = with_copies(draw(rows, n_latents, k), min(1024, n_latents // 8))
    moments = codes.moments
    parts = [codes.rows(np.arange(rows) // SHARD == shard) for shard in range(-(-rows // SHARD))]
    with tempfile.TemporaryDirectory() as folder:
        small = KeptPairs(64, Path(folder))
        small.add(draw(100, 64, 4))
        scanned(small, CodeMoments.zeros(64))  # loads the kernels
        kept = KeptPairs(n_latents, Path(folder))
        began, worked = time.perf_counter(), time.process_time()
        for part in parts:
            kept.add(part)
        kept.flush()
        keeping = time.perf_counter() - began, time.process_time() - worked
        began, worked = time.perf_counter(), time.process_time()
        found = scanned(kept, moments)
        scanning = time.perf_counter() - began, time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        on_disk = sum(path.stat().st_size for path in Path(folder).iterdir())
        worst, pairs = largest_error(codes, moments, kept, found)
    return {
        "latents": n_latents,
        "rows": rows,
        "active_codes": len(codes.latents),
        "keep_seconds": keeping,
        "scan_seconds": scanning,
        "per_million_rows": [(a + b) / rows * 1e6 for a, b in zip(keeping, scanning, strict=True)],
        "disk_bytes": on_disk,
        "peak_bytes": peak,
        "triangle_bytes": PairSums.bytes_needed(n_latents),
        "pairs_above": found.n_above,
        "checked_pairs": pairs,
        "largest_error": worst,
    }


def apart(rows: int, n_latents: int, k: int) -> dict[str, Any]:
    """:func:`measure` in a process of its own, for its peak of memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, rows, n_latents, k).result()


def line(found: dict[str, Any]) -> str:
    """One size as text."""
    clock, processor = found["per_million_rows"]
    return (
        f"F {found['latents']:>7,}: {clock:,.0f} s ({processor:,.0f}) per million rows; "
        f"{found['disk_bytes'] / 1e9:.2f} GB on disk, {found['peak_bytes'] / 1e9:.2f} GB of memory at most "
        f"(the triangle: {found['triangle_bytes'] / 1e9:,.1f}); {found['pairs_above']:,} pairs beyond "
        f"{ASKED.threshold}, {found['checked_pairs']} of them checked; largest difference {found['largest_error']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--latents", type=int, nargs="+", default=[4096, 16_384, 65_536, 131_072])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"k": args.k, "load": os.getloadavg()[0], "sizes": []}
    print(f"k {args.k}, load {results['load']:.1f}; seconds of the clock (of the processor)")
    for n_latents in args.latents:
        results["sizes"].append(apart(args.rows, n_latents, args.k))
        print(line(results["sizes"][-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
