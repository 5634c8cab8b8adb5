"""Describes one cache or run: counts, sites, settings, checkpoints and results."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from ..cache.commits import commits_of, load_commit
from ..cache.documents import read_documents
from ..cache.massive import MOST_LISTED, massive_activations, massive_text
from ..cache.mirror import at_hand, shown
from ..cache.outliers import FACTOR
from ..cache.reader import Cache, open_cache
from ..console import count, duration, size
from ..errors import DataError
from ..glossary import meaning_of
from ..runs.folder import fvu_label, open_run
from ..runs.samples import samples_summary
from ..text_table import text_table
from .find import folder_bytes, kind_of
from .status import cache_entry, run_entry


def describe(path: Path) -> dict[str, Any]:
    """Contents of a cache or run, JSON-able. Raises DataError when the folder is neither, or cannot be read."""
    kind, place, path = kind_of(path), shown(path), at_hand(path)
    if kind == "cache":
        return {**describe_cache(path), "next": cache_entry(path)["next"]}
    if kind == "run":
        return {**describe_run(path), "next": run_entry(path)["next"]}
    found = (
        "neither a cache (plan.json not found) nor a run (config.yaml not found)" if path.exists() else "no such folder"
    )
    raise DataError(f"{place}: {found}", "pipeline status   (lists caches and runs)")


def describe_cache(path: Path) -> dict[str, Any]:
    """Counts, sites and settings of a cache, finished or not."""
    cache = open_cache(path, allow_incomplete=True)
    if cache.complete:
        n_tokens = int(cache.manifest["n_tokens"])
    else:
        n_tokens = sum(load_commit(path, shard).tokens for shard in cache.shards)
    sites = {
        name: {
            "shape": [cache.n_rows, site.width],
            "logical_dtype": site.logical_dtype,
            "storage": site.storage,
            "module_path": site.module_path,
            "io": site.io,
            "mean_sq_norm": _finite(cache.stats(name).rest.mean_sq_norm),
            "nonfinite": int(cache.stats(name).nonfinite),
            "massive_activations": massive_activations(cache.stats(name)),
            "massive_rows": _massive_rows(cache, name),
        }
        for name, site in cache.sites.items()
    }
    return {
        "kind": "cache",
        "name": path.name,
        "path": shown(path),
        "format_version": cache.manifest["format_version"],
        "complete": cache.complete,
        "identity": cache.identity,
        "earlier_identities": list(cache.identities[:-1]),
        "n_tokens": n_tokens,
        "n_sequences": cache.n_seq,
        "ctx": cache.ctx,
        "n_rows": cache.n_rows,
        "bos": cache.manifest.get("extra", {}).get("bos"),
        "shards": {"committed": len(cache.shards), "total": cache.layout.n_shards},
        "sites": sites,
        "documents": _documents(path),
        "bytes": folder_bytes(path) if cache.mirror is None else _committed_bytes(cache),
        "copies": None if cache.mirror is None else {"folder": str(path), "bytes": folder_bytes(path)},
        "config": cache.config,
        "provenance": cache.manifest.get("provenance", {}),
    }


def _committed_bytes(cache: Cache) -> int:
    """Bytes of the chunk files that commits name."""
    return sum(cache.parts.expected_files(commits_of(cache.path)).values())


def _documents(path: Path) -> dict[str, Any]:
    """How many documents the cache has, and how many of each domain, the largest first."""
    domains = Counter(record.domain for record in read_documents(path))
    named = {domain or "(none)": n for domain, n in domains.most_common()}
    return {"count": domains.total(), "domains": named if set(domains) - {""} else {}}


def _massive_rows(cache: Cache, site: str) -> dict[str, Any] | None:
    """Massive rows and outlying dimensions of a site as the manifest has them; None where it has none.

    A manifest without them would take a pass over the cache, which `inspect` does not make.
    """
    if site not in cache.manifest.get("massive", {}):
        return None
    found = cache.outliers(site)
    return {
        "count": len(found.rows),
        "share_of_rows": len(found.rows) / found.rest.n if found.rest.n else 0.0,
        "share_of_variance": found.share_of_variance,
        "median_norm": found.median_norm,
        "threshold": found.threshold,
        "dimensions": list(found.dimensions),
        "dimensions_share_of_variance": found.dimensions_share,
    }


def _massive_rows_text(found: dict[str, Any]) -> str:
    """`_massive_rows` in one line."""
    dimensions = found["dimensions"]
    listed = ", ".join(map(str, dimensions[:MOST_LISTED])) + (" …" if len(dimensions) > MOST_LISTED else "")
    rows = "no massive rows"
    if found["count"]:
        rows = (
            f"{count(found['count'], 'massive row')}: {found['share_of_rows']:.2%} of the rows excluding position 0, "
            f"{found['share_of_variance']:.1%} of their variance"
        )
    text = f"{rows} (norm above {found['threshold']:.4g}, {FACTOR:g} × the median)"
    if dimensions:
        share = found["dimensions_share_of_variance"]
        text += f"; {count(len(dimensions), 'outlying dimension')} with {share:.1%} of the variance: {listed}"
    return text


def describe_run(path: Path) -> dict[str, Any]:
    """Settings, checkpoints and results of a run, finished or not."""
    run = open_run(path, allow_incomplete=True)
    final = run.final if run.complete else {}
    return {
        "kind": "run",
        "name": run.name,
        "path": str(path),
        "complete": run.complete,
        "variant": run.config.get("variant"),
        "architecture": final.get("architecture") or run.config.get("coder", {}).get("architecture"),
        "d_in": final.get("d_in"),
        "d_out": final.get("d_out"),
        "cache": final.get("cache"),
        "summary": final.get("summary"),
        "checkpoints": [checkpoint.name for checkpoint in run.checkpoints()],
        "samples": samples_summary(path),
        "metrics": len(run.metrics()),
        "bytes": folder_bytes(path),
        "config": run.config,
    }


SUMMARY = {
    "fvu": None,  # its label says on which rows
    "fvu_with_bos": "incl. pos. 0",
    "fvu_without_massive": "excl. massive",
    "fvu_dims": "per dim.",
    "fvu_untrained": "untrained",
    "fvu_ema": "averaged",
    "l0": "L0",
    "dead": "dead",
}
"""Figures of a run's summary, as `inspect` names them."""


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    """The figures of a finished run one below the other with what they mean; then how long it took, and a note."""
    rows = [
        [f"  {name or fvu_label(summary.get('evaluated_on'))}", _figure(key, summary[key])]
        for key, name in SUMMARY.items()
        if isinstance(summary.get(key), (int, float))
        and not (key == "fvu_without_massive" and not summary.get("massive_share"))
    ]
    lines = text_table([[*row, meaning_of(row[0].strip())] for row in rows], left=(0, 2)).splitlines()
    if isinstance(summary.get("steps"), int) and isinstance(summary.get("tokens"), int):
        seconds = summary.get("seconds")
        time = f" in {duration(seconds)}" if isinstance(seconds, (int, float)) else ""
        lines.append(f"  {summary['steps']:,} steps, {summary['tokens']:,} tokens{time}")
    note = summary.get("note")
    return [*lines, *([f"  note: {note}"] if note else [])]


def _figure(key: str, value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if key == "l0" else f"{value:.4f}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def describe_text(document: dict[str, Any]) -> str:
    """The document of `describe` as lines of text."""
    state = "complete" if document["complete"] else "incomplete"
    lines = [f"{document['kind']} {document['path']}: {state}, {size(document['bytes'])}"]
    if document["kind"] == "cache":
        shards = document["shards"]
        lines.append(
            f"  {document['n_tokens']:,} tokens in {document['n_sequences']:,} sequences of {document['ctx']}, "
            f"{shards['committed']} of {shards['total']} shards, format {document['format_version']}"
        )
        documents = document["documents"]
        if documents["count"]:
            named = ", ".join(f"{domain} {n:,}" for domain, n in documents["domains"].items())
            lines.append(f"  {count(documents['count'], 'document')}{': ' if named else ''}{named}")
        for name, site in document["sites"].items():
            shape = " × ".join(f"{n:,}" for n in site["shape"])
            lines.append(f"  {name}: {shape} {site['storage']}, {site['module_path']}:{site['io']}")
            massive = massive_text(site["massive_activations"])
            lines += [f"    {massive}"] if massive else []
            if site["nonfinite"]:
                lines.append(f"    {count(site['nonfinite'], 'row')} with an infinity or a NaN")
            rows = site["massive_rows"]
            lines += [] if rows is None else [f"    {_massive_rows_text(rows)}"]
        if (bos := document["bos"]) is not None:
            begun = "text, without BOS" if bos["token_id"] is None else f"BOS {bos['token']!r} (id {bos['token_id']})"
            lines.append(f"  sequences begin with {begun}; harvest.bos: {bos['setting']}")
        lines.append(f"  identity {document['identity']}")
        if (copies := document["copies"]) is not None:
            lines.append(f"  copies on this machine: {size(copies['bytes'])} in {copies['folder']}")
    else:
        lines.append(f"  variant {document['variant']}, architecture {document['architecture']}")
        lines += _summary_lines(document["summary"] or {})
        lines.append(f"  checkpoints: {', '.join(document['checkpoints']) or 'none'}")
        if (samples := document["samples"]) is not None:
            lines.append(
                f"  samples: {samples['samples']['total']:,} of {samples['latents']['with_samples']:,} latents "
                f"after step {samples['step']:,}; tables: {samples['table']}"
            )
    return "\n".join([*lines, *([f"next: {document['next']}"] if document["next"] else [])])
