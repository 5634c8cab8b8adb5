"""What a section found, written to its own file after every entry: a process that is killed loses nothing."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Record:
    """Values and checks of one section.

    Args:
        path: the JSON file to keep them in; None keeps them in memory only.

    Attributes:
        values: name → what was measured.
        checks: what must hold: {"name", "ok", "found"}.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []

    def put(self, name: str, value: Any) -> None:
        """Note a measurement."""
        self.values[name] = value
        print(f"  {name}: {value}", flush=True)
        self._write()

    def check(self, name: str, ok: bool, found: Any = None) -> None:
        """Note whether something that must hold does."""
        self.checks.append({"name": name, "ok": bool(ok), "found": found})
        print(f"  {'ok  ' if ok else 'FAIL'} {name}: {found}", flush=True)
        self._write()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the section: an exception in it is a failed check, and the section continues."""
        began = time.perf_counter()
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.check(name, False, f"{type(error).__name__}: {str(error)[:400]}")
        finally:
            self.values.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 1)
            self._write()

    def to_dict(self) -> dict[str, Any]:
        return {"values": self.values, "checks": self.checks}

    def _write(self) -> None:
        if self.path is None:
            return
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.to_dict(), default=str), encoding="utf-8")
        temporary.replace(self.path)
