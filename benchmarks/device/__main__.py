"""First checks on a CUDA device: what must be right, then what is timed, within a time budget.

    python -m benchmarks.device --out DIR                      # everything, at most 8 minutes
    python -m benchmarks.device --out DIR --only steps,curve   # some sections
    python -m benchmarks.device --out DIR --toy                # tiny shapes on a CPU: do the checks themselves run?

Every section is a process with a time limit: one that fails, hangs or breaks the device's context takes nothing else
with it. What must be right (kernels against float64, the tests marked `gpu`, compiled against eager) runs side by side;
what is timed runs alone. DIR receives device.json, device.md (the table) and device.log. Exit code 1 if a check failed
or a section did not end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .record import Record
from .setting import Setting, memory_folder

Run = Callable[[Record, Setting], None]


@dataclass(frozen=True)
class Section:
    """One part of the checks.

    Attributes:
        load: returns the function that runs it; imports happen in the section's own process.
        seconds: its time limit.
        alone: whether nothing else may run beside it, because it is timed.
    """

    load: Callable[[], Run]
    seconds: float
    alone: bool = True


def _environment() -> Run:
    from .environment import environment

    return environment


def _kernels(which: str) -> Run:
    from .kernels import kernels

    return partial(kernels, which=which)


def _suites(which: str) -> Run:
    from .suites import suites

    return partial(suites, which=which)


def _compiled() -> Run:
    from .harvests import compiled

    return compiled


def _steps() -> Run:
    from .steps import steps

    return steps


def _curve() -> Run:
    from .steps import curve

    return curve


def _harvests() -> Run:
    from .harvests import harvests

    return harvests


def _trainings() -> Run:
    from .trainings import trainings

    return trainings


def _analyses() -> Run:
    from .analyses import analyses

    return analyses


SECTIONS: dict[str, Section] = {
    "environment": Section(_environment, 40),
    "kernels-full": Section(partial(_kernels, "full"), 120, alone=False),
    "kernels-odd": Section(partial(_kernels, "odd"), 120, alone=False),
    "kernels-batch": Section(partial(_kernels, "batch"), 120, alone=False),
    "kernels-float32": Section(partial(_kernels, "float32"), 120, alone=False),
    "tests-gpu": Section(partial(_suites, "gpu"), 140, alone=False),
    "tests-runs": Section(partial(_suites, "runs"), 140, alone=False),
    "compiled": Section(_compiled, 150, alone=False),
    "steps": Section(_steps, 110),
    "curve": Section(_curve, 45),
    "harvest": Section(_harvests, 130),
    "train": Section(_trainings, 80),
    "analyze": Section(_analyses, 80),
}
TOY_SECONDS = 300.0
LEAST_SECONDS = 15.0
"""A section is not started with less time left than this."""


def run_section(name: str, setting: Setting, path: Path | None = None) -> Record:
    """Run a section in this process. An exception is a failed check."""
    record = Record(path)
    try:
        SECTIONS[name].load()(record, setting)
        record.values["completed"] = True
    except Exception as error:
        traceback.print_exc()
        record.check("section", False, f"{type(error).__name__}: {str(error)[:400]}")
    return record


def chosen(only: str, skip: str) -> list[str]:
    """Sections by name or by the part before the hyphen; raises SystemExit for an unknown one."""

    def matches(name: str, words: str) -> bool:
        return any(word in (name, name.partition("-")[0]) for word in words.split(",") if word)

    for word in filter(None, f"{only},{skip}".split(",")):
        if not any(matches(name, word) for name in SECTIONS):
            raise SystemExit(f"error: no such section: {word}; found {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if (not only or matches(name, only)) and not matches(name, skip)]


def start(name: str, parts: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """A section's process, in a session of its own; what it prints goes to its log."""
    toy = "--toy" in options
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    if toy:
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-W", "ignore", "-m", "benchmarks.device", "--section", name, *options]
    with (parts / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def ended(process: subprocess.Popen[bytes], until: float) -> str:
    """Wait for a section until a moment of the monotonic clock; then end it with everything it started."""
    try:
        code = process.wait(timeout=max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the session that `start` made for it
        process.wait()
        return "time limit"
    return "done" if code == 0 else f"exit code {code}"


def run_all(names: Sequence[str], parts: Path, options: Sequence[str], budget: float) -> dict[str, str]:
    """Run sections as processes: those that are only checked side by side, those that are timed alone."""
    end = time.monotonic() + budget
    states: dict[str, str] = {}
    together = [name for name in names if not SECTIONS[name].alone]
    groups = [[name] for name in names if SECTIONS[name].alone]
    if together:
        groups.insert(1 if names[0] == "environment" else 0, together)
    for group in groups:
        began = time.monotonic()
        if end - began < LEAST_SECONDS:
            states |= dict.fromkeys(group, "not started: no time left")
            continue
        running = {name: start(name, parts, options) for name in group}
        for name, process in running.items():
            limit = TOY_SECONDS if "--toy" in options else SECTIONS[name].seconds
            states[name] = ended(process, min(end, began + limit))
            print(f"{name}: {states[name]} after {time.monotonic() - began:.0f} s", flush=True)
    return states


def gathered(states: dict[str, str], parts: Path) -> dict[str, Any]:
    """Every section's state, values and checks."""
    sections = {}
    for name, state in states.items():
        file = parts / f"{name}.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"values": {}, "checks": []}
        sections[name] = {"state": state, **found}
    return {"sections": sections}


def failures(document: dict[str, Any]) -> list[str]:
    """What did not hold, and what did not end."""
    found = []
    for name, section in document["sections"].items():
        if section["state"] != "done" or not section["values"].get("completed"):
            found.append(f"{name}: {section['state'] if section['state'] != 'done' else 'stopped by an error'}")
        found += [f"{name}: {one['name']}: {one['found']}" for one in section["checks"] if not one["ok"]]
    return found


def table(document: dict[str, Any]) -> str:
    """Markdown: what failed, then every measurement."""
    wrong = failures(document)
    checks = [one for section in document["sections"].values() for one in section["checks"]]
    lines = [f"{sum(one['ok'] for one in checks)} of {len(checks)} checks hold.", ""]
    lines += [f"- **failed** {line}" for line in wrong]
    lines += ["", "| section | what | found |", "|---|---|---|"]
    for name, section in document["sections"].items():
        for key, value in section["values"].items():
            if key not in ("completed", "seconds"):
                lines.append(f"| {name} | {key} | {_cell(value)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_cell(one)}" for key, one in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")


def write(document: dict[str, Any], parts: Path, out: Path) -> None:
    """device.json, device.md and device.log."""
    (out / "device.json").write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    (out / "device.md").write_text(table(document), encoding="utf-8")
    with (out / "device.log").open("w", encoding="utf-8") as log:
        for name in document["sections"]:
            file = parts / f"{name}.log"
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            log.write(f"===== {name}\n{text}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, and for work on the disk")
    parser.add_argument("--budget", type=float, default=470, help="seconds for everything (default 470)")
    parser.add_argument(
        "--only", default="", help=f"sections, with commas: {', '.join(SECTIONS)}; kernels: all of them"
    )
    parser.add_argument("--skip", default="", help="sections to omit, likewise")
    parser.add_argument("--toy", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--seed", type=int, help="of the random inputs (default: another one every time)")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    seed = time.time_ns() % 2**31 if args.seed is None else args.seed
    out = args.out.resolve()
    work = out / "work"
    memory = work / "memory" if args.toy else memory_folder(work)
    setting = Setting(work, memory, args.toy, seed)
    parts = work / "parts"
    if args.section:
        record = run_section(args.section, setting, parts / f"{args.section}.json")
        return 0 if record.values.get("completed") else 1
    names = chosen(args.only, args.skip)
    for folder in (parts, memory):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    options = ["--out", str(out), "--seed", str(seed), *(["--toy"] if args.toy else [])]
    try:
        document = gathered(run_all(names, parts, options, args.budget), parts)
        write(document, parts, out)
    finally:
        for folder in (memory, work):
            shutil.rmtree(folder, ignore_errors=True)
    print(table(document))
    return 1 if failures(document) else 0


if __name__ == "__main__":
    sys.exit(main())
