"""The part of SLURM that the recipes rely on: `sbatch` and `scontrol requeue`, on this machine, for the tests.

A job runs before its `sbatch` returns; the tasks of an array run side by side. Every start of a task is a line of
events.jsonl in SCHEDULER_STATE. SCHEDULER_KILL holds lines `JOB TASK GLOB`: the first start of that task of jobs whose
names begin so is sent SIGTERM, as `--signal=B:TERM` does before the time is up, once GLOB matches a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def sbatch(words: Sequence[str], state: Path) -> None:
    words = list(words)
    options: dict[str, str] = {}
    while words[0].startswith("--"):
        name, _, value = words.pop(0).removeprefix("--").partition("=")
        options[name] = value
    job = str(len([*state.glob("job-*")]) + 1)
    (state / f"job-{job}").touch()
    assert all((state / f"done-{other}").exists() for other in options.get("dependency", "").split(":")[1:])
    tasks = [None]
    if "array" in options:
        first, _, last = options["array"].partition("-")
        tasks = [*range(int(first), int(last) + 1)]
    threads = [threading.Thread(target=_task, args=(options, job, task, len(tasks), words, state)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if all(event["code"] == 0 for event in _last_starts(state, job)):
        (state / f"done-{job}").touch()
    print(job)


def _task(options: dict[str, str], job: str, task: int | None, n: int, words: list[str], state: Path) -> None:
    number = 0 if task is None else task
    ours = f"{job}-{number}"
    environment = dict(os.environ) | {"SLURM_JOB_ID": ours}
    if task is not None:
        bounds = {"ID": task, "MIN": 0, "MAX": n - 1, "COUNT": n}
        environment |= {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in bounds.items()}
    environment |= dict(pair.split("=", 1) for pair in options.get("export", "").split(",") if "=" in pair)
    restart = 0
    while True:
        process = subprocess.Popen(
            ["bash", *words], env=environment | {"SLURM_RESTART_COUNT": str(restart)}, stdout=subprocess.DEVNULL
        )
        told = _signal(process, options.get("job-name", ""), number) if restart == 0 else False
        event = {"job": job, "name": options.get("job-name"), "task": number, "code": process.wait(), "told": told}
        with (state / "events.jsonl").open("a") as log:
            log.write(json.dumps(event) + "\n")
        if not (state / f"requeue-{ours}").exists():
            return
        (state / f"requeue-{ours}").unlink()
        restart += 1


def _signal(process: subprocess.Popen[bytes], name: str, task: int) -> bool:
    """Sends SIGTERM to the batch script, and to nothing else, as soon as there is something to lose."""
    for line in os.environ.get("SCHEDULER_KILL", "").splitlines():
        job, number, glob = line.split()
        if name.startswith(job) and int(number) == task:
            while process.poll() is None:
                if [*Path().glob(glob)]:
                    process.send_signal(signal.SIGTERM)
                    return True
                time.sleep(0.02)
    return False


def _last_starts(state: Path, job: str) -> list[dict[str, Any]]:
    last = {event["task"]: event for event in events(state) if event["job"] == job}
    return [*last.values()]


def events(state: Path) -> list[dict[str, Any]]:
    """Every start of a task, in the order in which they ended."""
    return [json.loads(line) for line in (state / "events.jsonl").read_text().splitlines()]


def main() -> None:
    state = Path(os.environ["SCHEDULER_STATE"])
    if sys.argv[1] == "sbatch":
        sbatch(sys.argv[2:], state)
    else:
        assert sys.argv[2] == "requeue"
        (state / f"requeue-{sys.argv[3]}").touch()


if __name__ == "__main__":
    main()
