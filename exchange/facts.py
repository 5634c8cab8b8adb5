"""What is known of a coder besides its weights: the model, the sites, the text. Metadata of every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models.site_names import parse_site
from ..shared.cache import Cache
from ..shared.dataset_text import dataset_text
from ..shared.errors import DataError
from .hooks import model_type_of


@dataclass(frozen=True)
class Facts:
    """Where a coder belongs.

    Attributes:
        source, target: sites that it reads and writes; "" where the metadata do not say, and then `problem` does.
        model: name of the language model; None: not known.
        family: the model's `model_type`; None: not known.
        context: tokens in a sequence. prepend_bos: whether sequences begin with BOS. dataset: the text.
        name: of the run. training: the run's settings. summary: figures that training measured.
        notes: what could not be carried over, one line each.
        problem: why a site is not known.
    """

    source: str
    target: str
    model: str | None = None
    family: str | None = None
    context: int | None = None
    prepend_bos: bool | None = None
    dataset: str | None = None
    name: str = "coder"
    training: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str | None = None


def facts_of_run(name: str, final: Mapping[str, Any], cache: Cache | None, model: str | None = None) -> Facts:
    """The facts of a run.

    Args:
        final: its final/config.json.
        cache: the cache it reads; None: not available, and then the model's name must come from elsewhere.
        model: overrides the name of the model.
    """
    imported = final.get("imported", {})
    known: dict[str, Any] = {
        key: imported[key] for key in ("model", "context", "prepend_bos", "dataset") if key in imported
    }
    if cache is not None:
        harvest, resolved = cache.config.get("harvest", {}), cache.config.get("resolved", {})
        known = {
            "model": harvest.get("model"),
            "family": resolved.get("model_type"),
            "context": cache.ctx,
            "prepend_bos": resolved.get("bos_token_id") is not None,
            "dataset": dataset_text(harvest["dataset"]) if "dataset" in harvest else None,
        } | {key: value for key, value in known.items() if value is not None}
    if model is not None:
        known |= {"model": model, "family": None}
    known["family"] = known.get("family") or model_type_of(known.get("model"))
    return Facts(
        final["source"],
        final["target"],
        name=name,
        training=final.get("training", {}),
        summary=final.get("summary", {}),
        **known,
    )


def require_sites(facts: Facts, where: Path | str) -> None:
    """Raises DataError where a site is not known."""
    if not facts.source or not facts.target:
        side = " and ".join(name for name, site in (("source", facts.source), ("target", facts.target)) if not site)
        raise DataError(
            f"{where}: the {side} is not known: {facts.problem}",
            "pipeline import PATH --source layer_NN.KIND --target layer_NN.KIND   (of an SAE, --source alone)",
        )


def check_against(facts: Facts, widths: tuple[int, int], cache: Cache, where: Path | str) -> Facts:
    """The facts with the cache's names of the sites.

    A site is found by its name or, for a module path, by the module that the cache read.

    Raises:
        DataError: model, site or width differ; says what both have.
    """
    harvested = cache.config.get("harvest", {}).get("model")
    if facts.model and harvested and not _same_model(facts.model, str(harvested)):
        raise DataError(
            f"{where} belongs to {facts.model}, but {cache.path} was harvested from {harvested}",
            f"--model {harvested}   (says that they are the same)",
        )
    sites = []
    for side, site, width in (("source", facts.source, widths[0]), ("target", facts.target, widths[1])):
        found = _in_cache(site, cache)
        if found is None:
            raise DataError(
                f"the {side} of {where} is {site}, but {cache.path} holds {', '.join(cache.sites)}",
                f"pipeline inspect {cache.path}   (lists its sites; --{side} SITE chooses one)",
            )
        if cache.sites[found].width != width:
            raise DataError(
                f"the {side} of {where}, {found}, has width {width}, but in {cache.path} it has "
                f"{cache.sites[found].width}",
                f"pipeline inspect {cache.path}",
            )
        sites.append(found)
    changed = vars(facts) | {"source": sites[0], "target": sites[1]}
    return Facts(**changed)


def _in_cache(site: str, cache: Cache) -> str | None:
    if site in cache.sites:
        return site
    if parse_site(site)[0] is not None:
        return None
    path, _, io = site.rpartition(":")
    same = (name for name, spec in cache.sites.items() if (spec.module_path, spec.io) == (path, io))
    return next(same, None)


def _same_model(a: str, b: str) -> bool:
    """Whether two names are of one model: SAELens drops the owner of google/gemma-2-2b."""
    return a.rstrip("/").rpartition("/")[2].lower() == b.rstrip("/").rpartition("/")[2].lower()
