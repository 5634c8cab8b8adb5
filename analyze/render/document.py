"""The machine-readable report: report.json, with a versioned schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...shared.config.settings import to_dict
from ...shared.dataset_text import dataset_text
from ...shared.provenance import provenance
from ...shared.saved_report import SCHEMA, SCHEMA_VERSION
from ..compare.runs import Comparison
from ..config import AnalyzeConfig
from ..result import plain
from ..subject.analysed import Analysed
from .html import DATA


def build_document(
    analysed: Sequence[Analysed], comparison: Comparison | None, config: AnalyzeConfig
) -> dict[str, Any]:
    """Everything but per-latent data.

    {"schema", "schema_version", "made_with", "config", "caches": [...], "comparison", "definitions": [[term, text]],
    "runs": [{"name", "role", "trained", "folder", "facts", "summary", "reports": {name: {"title", "lead",
    "figures", "charts", "tables", "data"}}}]}
    """
    caches = {}
    for one in analysed:
        cache = one.subject.cache
        harvest = cache.config.get("harvest", {})
        caches[cache.path, cache.identity] = {  # a cache that grew is read as each run saw it
            "path": cache.record["path"],
            "identity": cache.identity,
            "model": harvest.get("model"),
            "dataset": dataset_text(harvest["dataset"]) if "dataset" in harvest else None,
            "ctx": cache.ctx,
            "rows": cache.n_rows,
            "rows_analysed": one.subject.n_rows,
            "documents": "all" if one.subject.heldout is None else "heldout",
            "sites": list(cache.sites),
        }
    definitions: dict[str, str] = {}
    for one in analysed:
        for result in one.results.values():
            definitions |= dict(result.definitions)
    if comparison is not None:
        definitions |= dict(comparison.definitions)
    folders = _folders([one.subject.name for one in analysed])
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "made_with": plain(provenance()),
        "config": plain(to_dict(config)),
        "caches": list(caches.values()),
        "runs": [
            {
                "name": one.subject.name,
                "role": one.subject.role,
                "trained": one.facts["trained"],
                "folder": folder,
                "facts": plain(one.facts),
                "summary": one.summary,
                "reports": {name: result.to_dict() for name, result in one.results.items()},
            }
            for one, folder in zip(analysed, folders, strict=True)
        ],
        "comparison": None if comparison is None else comparison.document,
        "definitions": [list(item) for item in definitions.items()],
    }


def _folders(names: Sequence[str]) -> list[str]:
    """A folder for each run: its name without what a file system may dislike, kept apart by a number."""
    folders: list[str] = []
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "run"
        folder, n = slug, 2
        while folder in (*folders, DATA):
            folder, n = f"{slug}_{n}", n + 1
        folders.append(folder)
    return folders
