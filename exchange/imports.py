"""`pipeline import`: coders of others as runs, so that every report, comparison and `--ce` works on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..models.site_names import parse_site
from ..shared.cache import Cache, open_cache
from ..shared.coders import Coder
from ..shared.config.settings import to_dict
from ..shared.errors import UsageError
from ..shared.provenance import provenance
from ..shared.runs.folder import create_run
from .facts import Facts, check_against, require_sites
from .folder import sha256
from .load import OWN, Loaded, load_coders


@dataclass(frozen=True)
class Overrides:
    """What a user says of a coder whose metadata say nothing, or something else.

    Attributes:
        source, target: sites. model: the language model. input: raw, or rms.
    """

    source: str | None = None
    target: str | None = None
    model: str | None = None
    input: Literal["raw", "rms"] | None = None


@dataclass(frozen=True)
class ImportedRun:
    """One run that was made."""

    path: Path
    loaded: Loaded
    facts: Facts
    cache: Path | None

    def to_dict(self) -> dict[str, Any]:
        coder = self.loaded.coder
        return {
            "path": str(self.path),
            "format": self.loaded.format,
            "architecture": coder.config.architecture,
            "latents": coder.n_latents,
            "source": self.facts.source,
            "target": self.facts.target,
            "input": coder.config.input_transform,
            "model": self.facts.model,
            "cache": None if self.cache is None else str(self.cache),
            "notes": list(self.facts.notes),
        }

    def __str__(self) -> str:
        coder, facts = self.loaded.coder, self.facts
        rms = " divided by its root mean square" if coder.config.input_transform == "rms" else ""
        lines = [
            f"{self.path}: {coder.config.architecture} from {self.loaded.format}, {coder.n_latents:,} latents",
            f"  {facts.source}{rms} → {facts.target}{f' of {facts.model}' if facts.model else ''}",
            *(f"  note: {note}" for note in facts.notes),
        ]
        where = "" if self.cache is not None else " --set analyze.cache=CACHE"
        return "\n".join([*lines, f"next: pipeline analyze {self.path}{where}"])


def import_coders(
    path: Path | str,
    runs: Path,
    *,
    name: str | None = None,
    cache: Path | None = None,
    layer: int | None = None,
    overrides: Overrides | None = None,
) -> list[ImportedRun]:
    """Make a run of every coder of a folder, file or hub path.

    Args:
        runs: folder of the runs.
        name: of the run; of several, NAME-layer_NN.
        cache: the cache that reports are to be made on: model, sites and widths are checked against it.

    Raises:
        DataError: the format is not recognised, a file is damaged, or the coder does not fit the cache.
        UsageError: a run of that name exists.
    """
    found = load_coders(path, layer=layer)
    opened = None if cache is None else open_cache(cache)
    checked = [_settled(one, overrides or Overrides(), opened, path) for one in found]
    names = _names([facts for _, facts in checked], name)
    for one in names:
        if (runs / one).exists():
            raise UsageError(f"{runs / one} already exists", f"pipeline import {path} --name OTHER")
    return [
        _write(replace(loaded, coder=coder_with(loaded.coder, overrides)), facts, runs, one, path, opened)
        for (loaded, facts), one in zip(checked, names, strict=True)
    ]


def coder_with(coder: Coder, overrides: Overrides | None) -> Coder:
    """The coder, with the input transform that the user said."""
    if overrides is not None and overrides.input is not None:
        coder.config = replace(coder.config, input_transform=overrides.input)
    return coder


def _settled(loaded: Loaded, overrides: Overrides, cache: Cache | None, path: Path | str) -> tuple[Loaded, Facts]:
    """The coder with its sites settled, and checked against the cache."""
    changed = {key: value for key, value in vars(overrides).items() if value is not None and key != "input"}
    for site in (overrides.source, overrides.target):
        if site is not None:
            parse_site(site)
    facts = replace(loaded.facts, **changed)
    if overrides.source is not None and overrides.target is None and loaded.coder.tied:
        facts = replace(facts, target=facts.source)
    require_sites(facts, path)
    if facts.problem and facts.source != facts.target:
        loaded.coder.tied = False  # nothing but the user's two sites says what it is
    if loaded.coder.tied != (facts.source == facts.target) and loaded.coder.tied:
        raise UsageError(
            f"{path} is an SAE: it reads and writes one site, not {facts.source} and {facts.target}",
            "give --source alone",
        )
    if cache is not None:
        facts = check_against(facts, (loaded.coder.d_in, loaded.coder.d_out), cache, path)
    return loaded, facts


def _names(facts: Sequence[Facts], name: str | None) -> list[str]:
    if name is not None and "/" in name:
        raise UsageError(f"--name: expected the name of a run, found {name!r}", f"--name {name.replace('/', '-')}")
    names = [one.name for one in facts]
    if name is not None:
        names = [name] if len(facts) == 1 else [f"{name}-{one.target.partition('.')[0]}" for one in facts]
    names = [one.replace("/", "-").lstrip(".") or "imported" for one in names]
    if len(set(names)) < len(names):
        raise UsageError(
            f"several coders would be called {', '.join(sorted(set(names)))}", "--layer N imports one of them"
        )
    return names


def _write(loaded: Loaded, facts: Facts, runs: Path, name: str, origin: Path | str, cache: Cache | None) -> ImportedRun:
    """The run's folder. Training-only parts (metrics, checkpoints, samples) do not exist."""
    files = [loaded.path] if loaded.path.is_file() else sorted(one for one in loaded.path.rglob("*") if one.is_file())
    weights = {one.name: sha256(one) for one in files if one.suffix in (".safetensors", ".npz", ".pt")}
    known = None if cache is None else cache.record
    imported = {
        "from": str(origin),
        "format": loaded.format,
        "sha256": weights,
        "model": facts.model,
        "context": facts.context,
        "prepend_bos": facts.prepend_bos,
        "dataset": facts.dataset,
        "notes": list(facts.notes),
    }
    settings = {
        "name": name,
        "source": facts.source,
        "target": None if loaded.coder.tied else facts.target,
        "coder": to_dict(loaded.coder.config),
    }
    made_with = {**provenance(), "imported": imported} | ({} if known is None else {"cache": known})
    run = create_run(runs, name, settings, made_with)
    extra = {"source": facts.source, "target": facts.target, "imported": imported}
    if known is not None:
        extra["cache"] = known
    if "training" in loaded.final:
        extra["training"] = loaded.final["training"]
    summary = dict(loaded.final.get("summary", {})) if loaded.format == OWN else {}
    run.finish(loaded.coder, summary, extra)
    return ImportedRun(run.path, loaded, facts, None if cache is None else cache.path)
