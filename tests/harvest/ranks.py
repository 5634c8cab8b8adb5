"""Run as a program: harvests one cache with several real processes, kills one of them, and resumes with other numbers.

The first harvest runs in this process; the others are forked from it, and each runs the command line. Prints one JSON
document: the exit codes and results of each step; the caches are left in the folder. Arguments: a folder, a model, a
text file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_pipeline import pipeline
from sparse_pipeline.shared.cache import CacheWriter
from tests.harvest.conftest import CTX

BATCH_SEQS = 16  # two shards of eight: a unit
TOKENS = 96 * CTX


def arguments(folder: Path, model: str, texts: str) -> list[str]:
    settings = {
        "model": model,
        "dataset": texts,
        "sites": "[layer_01.resid_mid, layer_01.mlp_out]",
        "tokens": TOKENS,
        "ctx": CTX,
        "batch_tokens": BATCH_SEQS * CTX,
        "shard_rows": 8 * CTX,
        "cache_dir": folder,
        "name": "c",
        "device": "cpu",
        "writers": 1,
    }
    return [
        "harvest",
        "--json",
        *(word for key, value in settings.items() for word in ("--set", f"harvest.{key}={value}")),
    ]


def start(command: list[str], out: Path, before: Callable[[], None] = lambda: None) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before()
            out.parent.mkdir(exist_ok=True)
            os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = pipeline.run(command)
            sys.stdout.flush()
        finally:
            os._exit(code)
    return child


def ended(child: int, out: Path) -> dict[str, Any]:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = out.read_text()
    return {"code": code, "result": json.loads(text) if text else None}


def at_shard(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """Acts when the process is about to write its shard of this number, counted from 0."""

    def install() -> None:
        real, seen = CacheWriter.write_shard, []

        def write_shard(self: CacheWriter, shard: int, **arrays: Any) -> Any:
            seen.append(shard)
            if len(seen) == number + 1:
                act()
            return real(self, shard, **arrays)

        CacheWriter.write_shard = write_shard  # type: ignore[method-assign]

    return install


def together(command: list[str], count: int, out: Path, before: dict[int, Callable[[], None]]) -> list[dict[str, Any]]:
    files = [out / f"{rank}.json" for rank in range(count)]
    ranks = [["--rank", str(rank), "--ranks", str(count)] for rank in range(count)]
    children = [start([*command, *ranks[rank]], files[rank], before.get(rank, lambda: None)) for rank in range(count)]
    return [ended(child, file) for child, file in zip(children, files, strict=True)]


def refused(command: list[str], folder: Path) -> list[dict[str, Any]]:
    """What a single writer, a second process 0 of 2 and a process of 3 are told while process 0 of 2 is at work."""
    inside, go = os.pipe(), os.pipe()

    def wait() -> None:
        os.write(inside[1], b"!")
        os.read(go[0], 1)

    first = start([*command, "--rank", "0", "--ranks", "2"], folder / "first.json", at_shard(1, wait))
    os.read(inside[0], 1)
    foreign = (["--rank", "0", "--ranks", "2"], ["--rank", "2", "--ranks", "3"], [])
    out = folder / "foreign.json"
    told = [ended(start([*command, *ranks], out), out) for ranks in foreign]
    os.write(go[1], b"!")
    return [*told, ended(first, folder / "first.json")]


def main() -> None:
    folder, model, texts = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    where = {name: folder / name for name in ("one", "two", "killed", "refused")}
    command = {name: arguments(path, model, texts) for name, path in where.items()}
    out = folder / "out"
    # here, so that the forked processes need not import everything again
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = pipeline.run(command["one"])
    found: dict[str, Any] = {"one": [{"code": code, "result": json.loads(text.getvalue())}]}
    found["two"] = together(command["two"], 2, out, {})
    kill = at_shard(1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    found["killed"] = together(command["killed"], 3, out, {1: kill})
    cache = where["killed"] / "c"
    found["kept"] = sorted(file.name for file in (cache / "commits").glob("*.json"))
    found["unfinished"] = not (cache / "manifest.json").exists()
    found["resumed"] = together(command["killed"], 2, out, {})
    found["refused"] = refused(command["refused"], out)
    found["alone"] = ended(start(command["refused"], out / "one.json"), out / "one.json")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
