"""The on-disk activation cache: format, writer, reader, statistics. Specification: docs/cache-format.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy import lazily
from .commits import CommitRecord
from .format import FORMAT_VERSION, Flag, Layout, SiteSpec, positions
from .problems import Problem
from .stats import Moments, SiteStats

if TYPE_CHECKING:
    from .reader import Cache, open_cache
    from .verify import VerifyReport, verify_cache
    from .writer import CacheWriter

__all__ = [
    "FORMAT_VERSION",
    "Cache",
    "CacheWriter",
    "CommitRecord",
    "Flag",
    "Layout",
    "Moments",
    "Problem",
    "SiteSpec",
    "SiteStats",
    "VerifyReport",
    "open_cache",
    "positions",
    "verify_cache",
]

_WITH_TORCH = {
    "Cache": "reader",
    "open_cache": "reader",
    "VerifyReport": "verify",
    "verify_cache": "verify",
    "CacheWriter": "writer",
}


def __getattr__(name: str) -> Any:
    return lazily(__name__, name, _WITH_TORCH)
