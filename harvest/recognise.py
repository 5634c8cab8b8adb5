"""What a harvest may call the same although it lies elsewhere: content decides, not paths.

The plan of a cache records its settings, paths included, and the fingerprints behind them. Where the fingerprints
agree, a path may differ. Where the dataset's fingerprint differs, the tokens decide as long as the cache is unfinished:
the harvest reads the dataset from its beginning and compares every committed shard.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..shared.cache.format import HISTORY, MANIFEST
from ..shared.cache.growth import is_empty, plan_files, read_head

CHECKED = "datasets_checked"
"""Entry of a manifest: fingerprints of datasets other than the plan's whose tokens equal those of the cache."""


def recognised(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The identity of a harvest as the cache at `path` spells it, if the content is the same; else as it was.

    Args:
        found: `prepare.identity_of`.
    """
    found = json.loads(json.dumps(found))
    plans = plan_files(path)
    if not plans or is_empty(path):
        return found
    recorded = read_head(plans[-1]).get("config", {})
    theirs, ours = recorded.get("resolved", {}), found["resolved"]
    if _may_differ(path, ours["dataset"], len(plans)):
        ours["dataset"] = theirs.get("dataset")
    for setting, fingerprint in (("model", "model_sha256"), ("dataset", "dataset")):
        if ours[fingerprint] is not None and ours[fingerprint] == theirs.get(fingerprint):
            found["harvest"][setting] = recorded["harvest"][setting]
    return found


def recorded_dataset(path: Path) -> str | None:
    """Fingerprint of the dataset in the plan of an existing cache."""
    identity = read_head(plan_files(path)[-1])["config"]["resolved"]["dataset"]
    return None if identity is None else str(identity)


def _may_differ(path: Path, dataset: str | None, plans: int) -> bool:
    """Whether the dataset's fingerprint may be another than the plan's."""
    if not (path / MANIFEST).is_file():
        return True
    manifest = read_head(path / MANIFEST)
    finished = len(manifest.get(HISTORY, [])) == plans - 1
    return not finished or dataset in manifest.get("extra", {}).get(CHECKED, [])
