"""What only a coder of one site can do, refused by name for a crosscoder."""

from __future__ import annotations

from ..errors import UsageError
from .base import Coder


def require_one_site(coder: Coder, what: str) -> None:
    """Raises UsageError for a coder that reads or writes several sites.

    Args:
        what: what was to be done, as the beginning of a sentence.
    """
    if coder.n_sources == coder.n_targets == 1:
        return
    sites = coder.source or f"{coder.n_sources} sites"
    raise UsageError(
        f"{what} needs a coder of one site; this {coder.kind} reads {sites}",
        "pipeline analyze   (reads it, and so does sp.load_coder in Python)",
    )
