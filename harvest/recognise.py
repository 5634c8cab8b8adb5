"""What a harvest may call the same although it lies elsewhere: content decides, not paths.

The plan of a cache records its settings, paths included, and the fingerprints behind them. Where the fingerprints
agree, a path may differ. Where the dataset's fingerprint differs, the tokens decide as long as the cache is unfinished:
the harvest reads the dataset from its beginning and compares every committed shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..shared.cache.format import HISTORY, MANIFEST, PLAN
from ..shared.cache.growth import is_empty, plan_files, read_head
from ..shared.cache.mirror import at_hand
from ..shared.errors import PipelineError
from ..shared.objects.address import is_address
from .config import HarvestConfig, cache_path, content_settings

CHECKED = "datasets_checked"
"""Entry of a manifest: fingerprints of datasets other than the plan's whose tokens equal those of the cache."""


def recognised(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The identity of a harvest as the cache at `path` spells it, if the content is the same; else as it was.

    Args:
        found: `prepare.identity_of`.
    """
    found = json.loads(json.dumps(found))
    path = at_hand(path)
    plans = plan_files(path)
    if not plans or is_empty(path):
        return found
    recorded = read_head(plans[-1]).get("config", {})
    theirs, ours = recorded.get("resolved", {}), found["resolved"]
    if _may_differ(path, ours["dataset"], len(plans)):
        ours["dataset"] = theirs.get("dataset")
        if "dataset_parts" in ours and "dataset_parts" in theirs:
            ours["dataset_parts"] = theirs["dataset_parts"]
    for setting, fingerprint in (("model", "model_sha256"), ("dataset", "dataset")):
        if ours[fingerprint] is not None and ours[fingerprint] == theirs.get(fingerprint):
            found["harvest"][setting] = recorded["harvest"][setting]
    return found


def place_of(config: HarvestConfig, found: Callable[[], dict[str, Any]]) -> Path:
    """Folder of the config's cache: a cache of the same content that was named after another path of its model or
    dataset, else the one that the settings name.

    Args:
        found: `prepare.identity_of`; called only if there is a cache with these settings, since it reads the weights.
    """
    path = cache_path(config)
    if config.name is not None or is_address(path) or path.exists():
        return path  # in a bucket, a cache of the same content under another name is not looked for
    settings = _but_for_paths(content_settings(config))
    for plan in sorted(config.cache_dir.glob(f"*/{PLAN}")):
        try:
            recorded = read_head(plan)["config"]
            if is_empty(plan.parent) or _but_for_paths(recorded.get("harvest", {})) != settings:
                continue
            wanted = json.loads(json.dumps(found()))
            same = recorded["resolved"]["dataset"] == wanted["resolved"]["dataset"]
            if same and recognised(plan.parent, wanted) == {key: recorded[key] for key in wanted}:
                return plan.parent
        except (PipelineError, KeyError):
            continue
    return path


def _but_for_paths(settings: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return {key: value for key, value in plain.items() if key not in ("model", "dataset")}


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
