"""What is analysed: the runs on one cache, and their controls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..shared.cache import Cache, open_cache
from ..shared.cache.beside import open_beside, open_recorded
from ..shared.cache.nonfinite import usable
from ..shared.cache.spread import choose_shards
from ..shared.cache.vocabulary import Vocabulary
from ..shared.coders import Coder, build_coder
from ..shared.coders.normalisation import SiteMoments
from ..shared.device import device_named
from ..shared.errors import DataError, PipelineError, UsageError
from ..shared.joint_names import parts_of
from ..shared.runs.explanations import explanations_of
from ..shared.runs.folder import Run, open_run
from ..shared.runs.own_cache import is_imported, own_cache_path, recorded_cache, refuse_another
from .config import AnalyzeConfig
from .subject.analysed import labelled_by, training_facts
from .subject.subject import SCRATCH, Subject

UNTRAINED = "untrained"
"""The control's name where there is only one."""

PROBE_ROWS = 256
"""Rows on which two untrained coders must agree to count as one control."""


def named_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """The finished runs by name; of equal names, by more of their path.

    Raises:
        UsageError: a run is given twice.
        DataError: a run is missing or unfinished.
    """
    runs = [open_run(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("a run is named twice", "name each run once")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return dict(zip(names, runs, strict=True))


def by_cache(runs: Mapping[str, Run], config: AnalyzeConfig) -> list[tuple[Path, list[tuple[str, Run]]]]:
    """(cache, runs on it): runs from before and after a cache grew are two groups, for each is analysed on its own."""
    groups: dict[tuple[Path, str | None, str], list[tuple[str, Run]]] = {}
    for name, run in runs.items():
        beside = json.dumps(_beside(run))
        groups.setdefault((*_cache_of(run, config), beside), []).append((name, run))
    return [(path, members) for (path, _, _), members in groups.items()]


def _beside(run: Run) -> list[dict[str, Any]]:
    """The records of the caches beside the one that a run was trained on."""
    found: list[dict[str, Any]] = run.final.get("cache", {}).get("beside", [])
    return found


def _cache_path(run: Run, config: AnalyzeConfig) -> Path:
    if config.cache is not None:
        return config.cache
    return own_cache_path(run, "analyze.cache")


def _cache_of(run: Run, config: AnalyzeConfig) -> tuple[Path, str | None]:
    """The cache of a run, and the identity under which it was trained on it, if the cache has grown since."""
    path = _cache_path(run, config)
    trained_on = run.final.get("cache", {}).get("identity")
    if config.cache is not None or trained_on not in open_cache(path).identities[:-1]:
        return path, None
    return path, trained_on


def subjects_of(
    path: Path, members: Sequence[tuple[str, Run]], config: AnalyzeConfig, scratch: Path = SCRATCH
) -> list[Subject]:
    """The runs on one cache and their controls.

    Args:
        scratch: folder for files that are needed only during the analysis.
    """
    first = members[0][1]
    cache = open_beside(
        open_cache(path, identity=_cache_of(first, config)[1], checksums=config.checksums),
        [open_recorded(one, first.path, checksums=config.checksums) for one in _beside(first)],
    )
    device = device_named(config.device, "analyze.device")
    for _, run in members:
        _check(run, run.final, cache, given=config.cache is not None)
    sites = [run.final[side] for _, run in members for side in ("source", "target")]
    cache = usable(cache, sites, config.nonfinite, "analyze.nonfinite")
    shards = choose_shards(cache, config.max_tokens)
    vocabulary = Vocabulary.of(cache)
    heldout = _heldout(members) if config.documents == "heldout" else None
    subjects = []
    for name, run in members:
        final = run.final
        frozen = "w_dec" in final.get("training", {}).get("freeze", ())
        coder = run.load_coder().to(device)
        subjects.append(
            Subject(
                name=name,
                role="control" if frozen else "run",
                coder=coder,
                cache=cache,
                source=final["source"],
                target=final["target"],
                vocabulary=vocabulary,
                shards=shards,
                device=device,
                seed=config.seed,
                heldout=heldout,
                trained_on=(own := _trained_on(run, cache)),
                measured=_measured(run) if own is cache else {},
                explanations=explanations_of(run.path, final["sha256"]),
                scratch=scratch,
            )
        )
    if heldout is not None and not subjects[0].rest_rows.any():
        raise UsageError(
            f"no document of {path} is held out at data.heldout {heldout:g}"
            + (" in the shards under analysis" if len(shards) < len(cache.shards) else "")
            + ", but analyze.documents is heldout",
            "--set analyze.documents=all",
        )
    if config.controls:
        # A control needs no control of its own, unless there is nothing else.
        subjects += _controls([subject for subject in subjects if subject.role == "run"] or subjects, members)
    return subjects


def _trained_on(run: Run, cache: Cache) -> Cache | None:
    """The cache that a run was trained on: the one under analysis, or another if it still exists."""
    known = run.final.get("cache", {})
    if known.get("identity") == cache.identity:
        return cache
    try:
        return recorded_cache(known, run.path)
    except PipelineError:  # not found, another is in its place, or its bucket does not answer
        return None


def _measured(run: Run) -> dict[str, Any]:
    """The FVU that training measured on held-out documents, its twins, and the untrained coder's; {} without any."""
    keys = ["fvu", "fvu_dims", "fvu_with_bos", "fvu_untrained"]
    keys += ["fvu_without_massive", "fvu_dims_without_massive"] if run.summary.get("massive_share") else []
    found = {key: run.summary.get(key) for key in keys}
    held_out = run.summary.get("evaluated_on") == "heldout"
    return {key: value for key, value in found.items() if value is not None} if held_out else {}


def _check(run: Run, final: dict[str, Any], cache: Cache, given: bool) -> None:
    """Check that the run fits the cache. Raises DataError."""
    for side, width in (("source", final["d_in"]), ("target", final["d_out"])):
        site = final.get(side)
        if not isinstance(site, str) or not set(parts_of(site)) <= cache.sites.keys():
            raise DataError(
                f"the {side} of run {run.name} is {site}, but {cache.path} holds {', '.join(cache.sites)}",
                f"pipeline inspect {cache.path}",
            )
        if (found := cache.spec(site).width) != width:
            raise DataError(
                f"the {side} of run {run.name}, {site}, has width {width}, but in {cache.path} it has {found}",
                f"pipeline inspect {cache.path}",
            )
    if not given and not is_imported(final):
        refuse_another(run, cache, f"--set analyze.cache={cache.path} to analyze it on that cache anyway")


def _heldout(members: Sequence[tuple[str, Run]]) -> float:
    """The share of documents that the runs held out. Imported runs were trained elsewhere: the others' share serves."""
    trained = {name: run.final for name, run in members if not is_imported(run.final)}
    if not trained:
        raise UsageError(
            f"{', '.join(name for name, _ in members)}: imported, so no document of the cache is held out",
            "--set analyze.documents=all",
        )
    shares = {
        name: float(final.get("training", {}).get("data", {}).get("heldout", 0.0)) for name, final in trained.items()
    }
    for name, share in shares.items():
        if not share:
            raise UsageError(
                f"run {name} trained on every document, but analyze.documents is heldout",
                "--set analyze.documents=all",
            )
    if len(set(shares.values())) > 1:
        raise UsageError(
            f"the runs hold out different documents: {', '.join(f'{n} {s:g}' for n, s in shares.items())}",
            "analyze them apart, or --set analyze.documents=all",
        )
    return next(iter(shares.values()))


def _controls(subjects: Sequence[Subject], members: Sequence[tuple[str, Run]]) -> list[Subject]:
    """Each run's coder as it was before training; one control for runs that began alike."""
    runs = dict(members)
    controls: list[tuple[Subject, list[str]]] = []
    for subject in subjects:
        coder = untrained(subject, runs[subject.name].final)
        before = {"fvu": found} if (found := subject.measured.get("fvu_untrained")) is not None else {}
        fresh = replace(subject, coder=coder, role="control", trained=False, measured=before, explanations=None)
        for other, names in controls:
            if _agree(fresh, other):
                names.append(subject.name)
                break
        else:
            controls.append((fresh, [subject.name]))
    return [replace(control, name=f"{UNTRAINED} ({', '.join(names)})") for control, names in controls]


def untrained(subject: Subject, final: dict[str, Any]) -> Coder:
    """The run's coder before its first step: the same settings, seed and normalisation. Of an imported run, whose
    beginning is not known: a fresh coder with its settings and the cache's normalisation."""
    coder = subject.coder
    generator = torch.Generator().manual_seed(int(final.get("training", {}).get("seed", 0)))
    fresh = build_coder(coder.config, coder.source_widths, coder.target_widths, tied=coder.tied, generator=generator)
    if "w_dec" in final.get("training", {}).get("freeze", ()):  # a frozen decoder is still the one that it began with
        with torch.no_grad():
            fresh.w_dec.copy_(coder.w_dec.cpu())
    if is_imported(final):  # its normalisation is in its weights: the control takes the cache's
        source, target = (_moments(subject.cache, site) for site in (subject.source, subject.target))
        fresh.set_normalisation(source, target)
    else:
        with torch.no_grad():
            fresh.copy_normalisation(coder)
    return fresh.to(subject.device).eval()


def _moments(cache: Cache, site: str) -> SiteMoments:
    stats = cache.stats(site).rest
    return SiteMoments(torch.from_numpy(stats.mean).double(), torch.from_numpy(stats.var).double())


def _agree(a: Subject, b: Subject) -> bool:
    """Whether two coders give the same codes and reconstructions on the same rows."""
    if (a.source, a.target, a.n_latents) != (b.source, b.target, b.n_latents):
        return False
    shard = a.shards[0]
    x = a.cache.chunk(a.source, shard)[:PROBE_ROWS].to(a.device)
    with torch.inference_mode():
        ours, theirs = a.coder.encode(x), b.coder.encode(x)
        return torch.equal(ours.dense(), theirs.dense()) and torch.equal(
            a.coder.decode(ours, x), b.coder.decode(theirs, x)
        )


def _rows_trained_on(cache: Cache, run: Run) -> str | None:
    """The identity of the cache that a run was trained on; of its first one with the same rows, if it grew by sites."""
    identity = run.final.get("cache", {}).get("identity")
    n_seq = {one.identity: one.n_seq for one in cache.parts.generations}
    return next((one for one, n in n_seq.items() if n == n_seq.get(identity)), identity)


def facts_of(subject: Subject, run: Run | None) -> dict[str, Any]:
    """What else is known of a subject (`Analysed.facts`); `run` is None for an untrained control."""
    coder = subject.coder
    facts: dict[str, Any] = {
        "architecture": coder.config.architecture,
        "kind": coder.kind,
        "latents": coder.n_latents,
        "source": subject.source,
        "target": subject.target,
        "cache": subject.cache.record["path"],
        "cache_identity": subject.cache.identity,
    }
    if run is None:
        return {**facts, "trained": False}
    return {
        **facts,
        "trained": True,
        "settings": run.final.get("training", {}),
        "trained_on": _rows_trained_on(subject.cache, run),
        "path": str(run.path),
        "training": training_facts(run),
        "explanations": labelled_by(subject.explanations),
    }
