"""What exists on disk: the caches and runs of a project, what is in one of them, and whether a run is sound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cache.commits import commits_of, load_commit
from .cache.files import read_json
from .cache.format import ARRAYS, MANIFEST, PLAN, Layout
from .cache.growth import Parts, generations_of, plan_files
from .cache.massive import massive_activations, massive_text
from .cache.reader import open_cache
from .config.registry import did_you_mean
from .config.settings import load_yaml
from .console import Console, count, si, size
from .errors import DataError, UsageError
from .runs.folder import Run, fvu_label, open_run
from .runs.samples import load_samples, samples_summary


def kind_of(path: Path) -> str | None:
    """ "cache" or "run", by what the folder holds; None when it is neither."""
    if (path / PLAN).is_file() or (path / MANIFEST).is_file() or (path / ARRAYS).is_dir():
        return "cache"
    if (path / "config.yaml").is_file() or (path / "final").is_dir() or (path / "checkpoints").is_dir():
        return "run"
    return None


def named(path: Path, *folders: Path) -> Path:
    """A cache or a run by its folder or by its name in one of `folders`.

    Where there is none, the path as it is; a bare name is then looked for in the last folder, as the error will say.
    """
    places = [folder / path for folder in folders]
    missing = path if path.exists() or len(path.parts) > 1 else places[-1]
    return next((found for found in (path, *places) if kind_of(found)), missing)


def folder_bytes(path: Path) -> int:
    """Bytes of every file below a folder; a file that vanishes meanwhile (a temporary one) is not counted."""
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def frozen_settings(path: Path) -> dict[str, Any]:
    """The settings that a cache or a run was made with, as a settings file would say them."""
    kind = kind_of(path)
    if kind == "cache":
        settings = read_json(plan_files(path)[-1])["config"].get("harvest", {})
        return {"harvest": {**settings, "cache_dir": str(path.parent), "name": path.name}}
    if kind == "run":
        return {"train": load_yaml(path / "config.yaml")}
    raise UsageError(f"-c {path}: a folder, but neither a cache nor a run", "pipeline status lists what exists")


def run_paths(names: Sequence[str], folder: Path) -> list[Path]:
    """The folders that runs are named by: paths, or names below the folder of runs, or every finished run in it.

    Raises DataError when there is none.
    """
    if names:
        return [Path(name) if Path(name).is_dir() else _below(name, folder) for name in names]
    found = [path for path in sorted(folder.glob("*/config.yaml")) if open_run(path.parent, True).complete]
    if not found:
        raise DataError(f"there is no finished run in {folder}", "pipeline train")
    return [path.parent for path in found]


def _below(name: str, folder: Path) -> Path:
    if (folder / name).is_dir():
        return folder / name
    known = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    raise DataError(f"there is no run {name!r} in {folder}{did_you_mean(name, known)}", "pipeline status")


# --- status ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """Every cache and run, and the command to run next."""

    caches: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    next: str

    def to_dict(self) -> dict[str, Any]:
        return {"caches": self.caches, "runs": self.runs, "next": self.next}

    def __str__(self) -> str:
        rows = [("", "name", "state", "size", "")]
        for entry in self.caches:
            amount = f"{si(entry['n_tokens'])} tokens" if entry["n_tokens"] is not None else ""
            rows.append(("cache", entry["path"], _state(entry), size(entry["bytes"]), amount))
        for entry in self.runs:
            result = f"{fvu_label(entry['evaluated_on'])} {entry['fvu']:.4f}" if entry["fvu"] is not None else ""
            rows.append(("run", entry["path"], _state(entry), size(entry["bytes"]), result))
        if len(rows) == 1:
            return f"no caches and no runs yet\nnext: {self.next}"
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        steps = [entry["next"] for entry in (*self.caches, *self.runs) if entry["next"]]
        return "\n".join([*lines, *(f"next: {step}" for step in dict.fromkeys([*steps, self.next]) if step)])


def _state(entry: dict[str, Any]) -> str:
    if entry["problem"]:
        return "damaged"
    if entry.get("growing"):
        return "complete, growing"
    return "complete" if entry["complete"] else f"incomplete, {entry['progress']}"


def status(cache_dir: Path, runs_dir: Path, trained_on: Path | None = None) -> Status:
    """Look through the folder of caches and the folder of runs; nothing is opened beyond its plan and last line.

    Args:
        trained_on: the cache that the settings train on; where it is not there, the next command names another.
    """
    caches = [_cache_entry(path) for path in _folders(cache_dir) if kind_of(path) == "cache"]
    runs = [_run_entry(path) for path in _folders(runs_dir) if kind_of(path) == "run"]
    if not caches:
        step = "pipeline harvest"
    elif not (whole := [Path(entry["path"]) for entry in caches if entry["complete"]]):
        step = ""  # said beside the cache
    elif not runs:
        step = "pipeline train" if trained_on in whole else f"pipeline train --set train.cache={whole[0]}"
    elif any(entry["complete"] for entry in runs):
        step = "pipeline analyze"
    else:
        step = ""
    return Status(caches, runs, step)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _cache_entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": path.name, "path": str(path), "complete": False, "progress": "", "n_tokens": None}
    entry |= {"growing": False}
    entry |= {"bytes": folder_bytes(path), "next": None, "problem": None}
    try:
        finished = (path / MANIFEST).is_file()
        plans = plan_files(path)
        head = read_json(path / MANIFEST if finished else plans[-1])
        parts, commits = Parts(Layout.from_dict(head["layout"]), generations_of(head)), commits_of(path)
        total, done = parts.layout.n_shards, len(parts.committed(commits))
        entry["progress"] = f"{done} of {total} shards"
        entry["complete"] = finished and done == total
        entry["growing"] = finished and len(plans) > len(parts.generations)
        entry["n_tokens"] = head["n_tokens"] if finished else None
    except (DataError, KeyError, TypeError) as error:
        entry["problem"] = str(error)
        entry["next"] = f"pipeline verify {path}"
    else:
        settled = entry["complete"] and not entry["growing"]
        entry["next"] = None if settled else f"pipeline harvest -c {path}"
    return entry


def _run_entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": path.name, "path": str(path), "complete": False, "progress": "", "fvu": None}
    entry |= {"evaluated_on": None}
    entry |= {"bytes": folder_bytes(path), "next": None, "problem": None}
    try:
        run = open_run(path, allow_incomplete=True)
        entry["complete"] = run.complete
        last = run.checkpoints()
        entry["progress"] = f"at {last[-1].name}" if last else "no checkpoint yet"
        summary = run.summary if run.complete else {}
        entry |= {"fvu": summary.get("fvu"), "evaluated_on": summary.get("evaluated_on")}
    except DataError as error:
        entry["problem"] = str(error)
        entry["next"] = f"pipeline verify {path}"
    else:
        entry["next"] = None if entry["complete"] else f"pipeline train -c {path} --resume"
    return entry


# --- inspect --------------------------------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, Any]:
    """What is in a cache or a run. Raises DataError when the folder is neither, or cannot be read."""
    kind = kind_of(path)
    if kind == "cache":
        return {**describe_cache(path), "next": _cache_entry(path)["next"]}
    if kind == "run":
        return {**describe_run(path), "next": _run_entry(path)["next"]}
    found = "no such folder" if not path.exists() else "neither a cache (plan.json) nor a run (config.yaml) is in there"
    raise DataError(f"{path}: {found}", "pipeline status lists what exists")


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
        }
        for name, site in cache.sites.items()
    }
    return {
        "kind": "cache",
        "name": path.name,
        "path": str(path),
        "format_version": cache.manifest["format_version"],
        "complete": cache.complete,
        "identity": cache.identity,
        "earlier_identities": list(cache.identities[:-1]),
        "n_tokens": n_tokens,
        "n_sequences": cache.n_seq,
        "ctx": cache.ctx,
        "n_rows": cache.n_rows,
        "shards": {"committed": len(cache.shards), "total": cache.layout.n_shards},
        "sites": sites,
        "bytes": folder_bytes(path),
        "config": cache.config,
        "provenance": cache.manifest.get("provenance", {}),
    }


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


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def describe_text(document: dict[str, Any]) -> str:
    """What `describe` found, for a person."""
    state = "complete" if document["complete"] else "incomplete"
    lines = [f"{document['kind']} {document['path']}: {state}, {size(document['bytes'])}"]
    if document["kind"] == "cache":
        shards = document["shards"]
        lines.append(
            f"  {document['n_tokens']:,} tokens in {document['n_sequences']:,} sequences of {document['ctx']}, "
            f"{shards['committed']} of {shards['total']} shards, format {document['format_version']}"
        )
        for name, site in document["sites"].items():
            shape = " × ".join(f"{n:,}" for n in site["shape"])
            lines.append(f"  {name}: {shape} {site['storage']}, {site['module_path']}:{site['io']}")
            massive = massive_text(site["massive_activations"])
            lines += [f"    {massive}"] if massive else []
        lines.append(f"  identity {document['identity']}")
    else:
        lines.append(f"  variant {document['variant']}, architecture {document['architecture']}")
        lines += [f"  {name}: {value}" for name, value in (document["summary"] or {}).items()]
        lines.append(f"  checkpoints: {', '.join(document['checkpoints']) or 'none'}")
        if (samples := document["samples"]) is not None:
            lines.append(
                f"  samples: {samples['samples']['total']:,} of {samples['latents']['with_samples']:,} latents "
                f"after step {samples['step']:,}, to read in {samples['table']}"
            )
    return "\n".join([*lines, *([f"next: {document['next']}"] if document["next"] else [])])


# --- verify ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunReport:
    """What `verify_run` found."""

    path: Path
    complete: bool
    checkpoints: int
    tensors: int
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def hint(self) -> str | None:
        return None if self.ok else f"remove what is named above, then pipeline train -c {self.path} --resume"

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "ok": self.ok,
            "complete": self.complete,
            "checkpoints": self.checkpoints,
            "tensors": self.tensors,
            "problems": self.problems,
        }

    def __str__(self) -> str:
        state = "complete" if self.complete else "not finished"
        read = f"{count(self.checkpoints, 'checkpoint')}, {count(self.tensors, 'tensor')} read"
        head = f"{self.path}: {read}, {state}"
        return "\n".join([head, *self.problems, "ok" if self.ok else count(len(self.problems), "problem")])


def verify_run(path: Path, console: Console | None = None) -> RunReport:
    """Read every tensor of a run: the checkpoints against their sha256, the finished coder against its settings."""
    run: Run = open_run(path, allow_incomplete=True)
    problems: list[str] = []
    tensors = 0
    found = run.checkpoints()
    total = len(found) + run.complete
    with (console or Console(quiet=True)).progress(total, "files", "verify") as progress:
        for folder in found:
            try:
                checkpoint = run.load_checkpoint(folder)
            except DataError as error:
                problems.append(str(error))
            else:
                tensors += len(checkpoint.coder) + len(checkpoint.optimizer) if checkpoint else 0
            progress.advance()
        if run.complete:
            try:
                state = run.load_coder().state_dict()
            except DataError as error:
                problems.append(str(error))
            else:
                tensors += len(state)
                wrong = [name for name, value in state.items() if not bool(value.isfinite().all())]
                problems += [f"{path / 'final'}: {name} is not finite everywhere" for name in wrong]
            progress.advance()
    for read in (run.metrics, lambda: load_samples(path) if samples_summary(path) is not None else None):
        try:
            read()
        except DataError as error:
            problems.append(str(error))
    return RunReport(path, run.complete, len(found), tensors, problems)
