"""The constants behind a plan, and which of them an estimate has used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.registry import did_you_mean
from ..config.yaml import load_yaml
from ..errors import UsageError

FILE = Path(__file__).with_name("constants.yaml")


@dataclass(frozen=True)
class Constant:
    """A number, whether it was measured, and where it comes from."""

    value: float
    measured: bool
    source: str


class Constants:
    """One section of the file: a device, a disk or the host. Remembers which constants were read.

    Attributes:
        name: in words.
    """

    def __init__(self, section: str, document: Mapping[str, Any], given: Mapping[str, float | None]) -> None:
        self.section, self.name = section, str(document.get("name", section))
        self._known = {key: Constant(**value) for key, value in document.items() if key != "name"}
        self._known |= {key: Constant(value, True, "given") for key, value in given.items() if value is not None}
        self.used: dict[str, Constant] = {}

    def __getitem__(self, key: str) -> float:
        self.used[key] = self._known[key]
        return self._known[key].value

    @property
    def assumed(self) -> list[str]:
        """The constants that were read and are not measured, in words."""
        return [
            f"{self.section} {key.replace('_', ' ')} {one.value:.4g} ({one.source})"
            for key, one in self.used.items()
            if not one.measured
        ]


def load(kind: str, name: str, given: Mapping[str, float | None] | None = None) -> Constants:
    """The constants of a device or a disk.

    Args:
        kind: `devices` or `disks`.
        given: values that replace those of the file.

    Raises:
        UsageError: the file has none of that name.
    """
    known = load_yaml(FILE)[kind]
    if name not in known:
        raise UsageError(
            f"{kind.removesuffix('s')} {name!r}: not found in {FILE.name}{did_you_mean(name, known)}",
            f"one of: {', '.join(known)}",
        )
    return Constants(name, known[name], given or {})


def load_host(given: Mapping[str, float | None] | None = None) -> Constants:
    """The constants of a machine's host."""
    return Constants("host", load_yaml(FILE)["host"], given or {})
