"""The state of every cache and run, the reports and sweeps on them, and the command to run next."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.commits import commits_of
from ..cache.format import MANIFEST, PLAN, Layout
from ..cache.growth import Parts, generations_of, plan_files, read_head
from ..cache.mirror import at_hand, caches_below, mirror_of, shown
from ..console import count, si, size
from ..errors import DataError, PipelineError, command
from ..folding import terminal_width
from ..objects.address import is_address
from ..runs.folder import fvu_label, open_run, resume_command
from ..text_table import legend, text_table
from .find import folder_bytes, kind_of
from .results import reports_in, sweeps_in

NAMED = 4
"""Runs of a report that are named."""


@dataclass(frozen=True)
class Status:
    """Every cache, run, report and sweep, and the command to run next ("" when the entries name it, or all is done)."""

    caches: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    reports: list[dict[str, Any]]
    sweeps: list[dict[str, Any]]
    next: str

    def to_dict(self) -> dict[str, Any]:
        names = ("caches", "runs", "reports", "sweeps", "next")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        if not (self.caches or self.runs or self.reports or self.sweeps):
            return f"no caches and no runs yet\nnext: {self.next}"
        tables = [
            _table("caches", self.caches, _tokens),
            _table("runs", self.runs, _result),
            _reports(self.reports),
            _table("sweeps", self.sweeps, lambda entry: count(len(entry["runs"]), "run")),
        ]
        labels = [fvu_label(entry["evaluated_on"]) for entry in self.runs if entry["fvu"] is not None]
        damaged = [f"damaged: {entry['problem']}" for entry in (*self.caches, *self.runs) if entry["problem"]]
        damaged += [f"diverged: {entry['path']}: {entry['note']}" for entry in self.runs if entry["note"]]
        steps = [entry["next"] for entry in (*self.caches, *self.runs)]
        parts = [*tables, legend(labels), *damaged]
        parts += [f"next: {step}" for step in dict.fromkeys([*steps, self.next]) if step]
        return "\n".join(part for part in parts if part)


def _table(kind: str, entries: list[dict[str, Any]], said: Callable[[dict[str, Any]], str]) -> str:
    """The entries of one kind: path, state and size where it has them, and what is `said` of each; "" without any."""
    cells = [[f"  {entry['path']}", _state(entry), size(entry["bytes"]) if "bytes" in entry else "", said(entry)]
             for entry in entries]  # fmt: skip
    kept = [place for place in range(4) if any(row[place] for row in cells)]
    header = [(kind, "state", "size", "")[place] for place in kept]
    return text_table([[row[place] for place in kept] for row in cells], header, left=range(4), breaks=len(kept) - 1)


def _reports(entries: list[dict[str, Any]]) -> str:
    """Each report and the runs that it is of, on a line of their own where both do not fit into one."""
    lines = ["reports"]
    for entry in entries:
        path, of = f"  {entry['path']}", _some(entry["runs"])
        if len(path) + 2 + len(of) <= terminal_width():
            lines.append(f"{path}  {of}")
        else:
            wrapped = textwrap.wrap(of, terminal_width() - 4, break_on_hyphens=False, break_long_words=False)
            lines += [path, *(f"    {line}" for line in wrapped)]
    return "\n".join(lines) if entries else ""


def _tokens(entry: dict[str, Any]) -> str:
    return f"{si(entry['n_tokens'])} tokens" if entry["n_tokens"] is not None else ""


def _result(entry: dict[str, Any]) -> str:
    return f"{fvu_label(entry['evaluated_on'])} {entry['fvu']:.4f}" if entry["fvu"] is not None else ""


def _some(names: list[str]) -> str:
    return (
        f"of {', '.join(names)}"
        if len(names) <= NAMED
        else f"of {', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    )


def _state(entry: dict[str, Any]) -> str:
    """Of a cache, run or sweep."""
    if "missing" in entry:
        return f"{count(entry['missing'], 'run')} missing" if entry["missing"] else "complete"
    if entry["problem"]:
        return "damaged"
    if entry.get("growing"):
        return "complete, growing"
    return "complete" if entry["complete"] else f"incomplete, {entry['progress']}"


def status(
    cache_dir: Path,
    runs_dir: Path,
    trained_on: Path | None = None,
    *,
    reports_dir: Path | None = None,
    sweeps_dir: Path | None = None,
) -> Status:
    """The caches in one folder, the runs in another, the reports and sweeps on them. Reads no array or tensor.

    Args:
        trained_on: the cache that the settings train on. If it does not exist, the next command names another cache.
        reports_dir, sweeps_dir: folders of reports and sweeps; None: they are not listed.
    """
    places = caches_below(cache_dir) if is_address(cache_dir) else _folders(cache_dir)
    caches = [cache_entry(path) for path in places if kind_of(path) == "cache"]
    runs = [run_entry(path) for path in _folders(runs_dir) if kind_of(path) == "run"]
    reports = [] if reports_dir is None else list(reports_in(reports_dir))
    sweeps = [] if sweeps_dir is None else list(sweeps_in(sweeps_dir, runs_dir))
    covered = {path for entry in (*reports, *sweeps) for path in entry.pop("covers")}
    if not caches:
        step = "pipeline harvest"
    elif not (whole := [Path(entry["path"]) for entry in caches if entry["complete"]]):
        step = ""  # each unfinished cache names its own command
    elif not runs:
        step = "pipeline train" if trained_on in whole else f"pipeline train --set train.cache={whole[0]}"
    else:
        step = _analysis([Path(entry["path"]) for entry in runs if entry["complete"]], covered)
    return Status(caches, runs, reports, sweeps, step)


def _analysis(finished: list[Path], covered: set[str]) -> str:
    """The command that analyzes what no report covers; "" where there is nothing."""
    left = [path for path in finished if str(path.resolve()) not in covered]
    if not left:
        return ""
    return "pipeline analyze" if len(left) == len(finished) else command("analyze", *left)


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
    except PermissionError as error:
        raise PipelineError(f"{parent} cannot be listed: {error.strerror}", "change its permissions") from None


def cache_entry(path: Path) -> dict[str, Any]:
    """State of one cache, JSON-able. A damaged cache gives an entry with its `problem`, never an error."""
    place, path = shown(path), at_hand(path)
    entry: dict[str, Any] = {
        "name": path.name,
        "path": place,
        "complete": False,
        "progress": "",
        "n_tokens": None,
        "growing": False,
        "bytes": folder_bytes(path) if mirror_of(path) is None else None,
        "next": None,
        "problem": None,
    }
    try:
        finished = (path / MANIFEST).is_file()
        plans = plan_files(path)
        if not plans:
            raise DataError(f"{path / PLAN} is missing")
        head = read_head(path / MANIFEST if finished else plans[-1])
        parts = Parts(Layout.from_dict(head["layout"]), generations_of(head))
        commits = commits_of(path)
        total, done = parts.layout.n_shards, len(parts.committed(commits))
        if entry["bytes"] is None:  # in a bucket
            entry["bytes"] = sum(parts.expected_files(commits).values())
        entry["progress"] = f"{done} of {total} shards"
        entry["complete"] = finished and done == total
        entry["growing"] = finished and len(plans) > len(parts.generations)
        entry["n_tokens"] = head["n_tokens"] if finished else None
    except (DataError, OSError) as error:
        entry["problem"] = str(error)
        entry["next"] = command("verify", place)
        entry["bytes"] = entry["bytes"] or 0
    else:
        settled = entry["complete"] and not entry["growing"]
        entry["next"] = None if settled else command("harvest", "-c", place)
    return entry


def run_entry(path: Path) -> dict[str, Any]:
    """State of one run, JSON-able. A damaged run gives an entry with its `problem`, never an error."""
    entry: dict[str, Any] = {
        "name": path.name,
        "path": str(path),
        "complete": False,
        "progress": "",
        "fvu": None,
        "evaluated_on": None,
        "note": None,
        "bytes": folder_bytes(path),
        "next": None,
        "problem": None,
    }
    try:
        run = open_run(path, allow_incomplete=True)
        entry["complete"] = run.complete
        last = run.checkpoints()
        entry["progress"] = f"at {last[-1].name}" if last else "no checkpoint yet"
        entry["note"] = str((run.note or {}).get("diverged") or "") or None
        summary = run.summary if run.complete else {}
        fvu = summary.get("fvu")
        number = isinstance(fvu, (int, float)) and not isinstance(fvu, bool)  # a folder from elsewhere may say anything
        entry |= {"fvu": fvu if number else None, "evaluated_on": summary.get("evaluated_on")}
    except (PipelineError, OSError) as error:
        entry["problem"] = str(error)
        entry["next"] = command("verify", path)
    else:
        entry["next"] = None if entry["complete"] else resume_command(run)
    return entry
