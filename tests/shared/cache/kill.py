"""Run as a program: writes a small cache, and dies by SIGKILL at each system call that matters, in turn.

A forked child is killed at moment n: just before its k-th write, sync or rename (n = 2k - 1), or in the middle of that
write or after that sync or rename (n = 2k). Another child then finishes the cache. Prints JSON: the kills, and those
after which the finished folder differs from that of a writer that was never killed. Arguments: a folder, the step in n.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zarr  # noqa: F401  (imported before the forks, each of which would import it again)

from sparse_pipeline.shared.cache import CacheWriter, Layout, SiteSpec
from tests.shared.cache.folders import contents
from tests.synthetic import sparse_acts, token_table, write_missing

SITES = {"layer_01.resid_mid": 8}
TABLE = token_table(12, 8)
ACTS = sparse_acts(TABLE, SITES)
LAYOUT = Layout(12, 8, 64, tuple(SiteSpec(name, width) for name, width in SITES.items()))
KILLED_CALLS = ("write", "fsync", "replace")


def write_cache(path: Path) -> None:
    with CacheWriter.create(path, LAYOUT, {"model": "m"}, {}) as writer:
        write_missing(writer, TABLE, ACTS)
        writer.finish()


def in_child(work: Callable[[], None]) -> int:
    """Runs in a forked process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(n: int) -> None:
    count = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            last = count == (n + 1) // 2
            if last and n % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if last and real.__name__ == "write":
                args = (args[0], args[1][: len(args[1]) // 2])
            result = real(*args, **options)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in KILLED_CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def main(folder: Path, step: int) -> None:
    assert in_child(lambda: write_cache(folder / "whole")) == 0
    whole = contents(folder / "whole")
    kills, wrong = 0, []
    for n in range(1, 10_000, step):

        def interrupted(n: int = n) -> None:
            die_at(n)
            write_cache(folder / "c")

        status = in_child(interrupted)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills += 1
        assert in_child(lambda: write_cache(folder / "c")) == 0, f"kill {n}: the next writer failed"
        if contents(folder / "c") != whole:
            wrong.append(n)
        shutil.rmtree(folder / "c")
    print(json.dumps({"kills": kills, "wrong": wrong, "files": len(whole)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
