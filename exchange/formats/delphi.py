"""delphi (automatic interpretation, EleutherAI): it loads sparsify's folders and hooks the modules that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ...shared.errors import UsageError
from .base import Options, Part, Written
from .sparsify import Sparsify, hookpoint


class Delphi(Sparsify):
    """sparsify's layout, for coders that delphi can hook."""

    name: ClassVar[str] = "delphi"
    tool: ClassVar[str] = "delphi"

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        for part in parts:
            why: list[str] = []
            hookpoint(part, why)
            if why:
                raise UsageError(
                    f"{part.facts.name}: {why[0].replace('sparsify', 'delphi')}",
                    "--to sparsify   (writes the weights alone)",
                )
        written = super().write(parts, folder, options)
        points = " ".join(written.extra["hookpoints"])
        model = parts[0].facts.model
        notes = (*written.notes, "delphi takes any path with `gemma` in it for Gemma Scope: name the folder otherwise")
        return Written(notes, f"python -m delphi {model} FOLDER --hookpoints {points}", written.extra)
