"""The on-disk activation cache: format, writer, reader, statistics. Specification: docs/cache-format.md."""

from __future__ import annotations

from .commits import CommitRecord
from .format import FORMAT_VERSION, Flag, Layout, SiteSpec, positions
from .reader import Cache, open_cache
from .stats import Moments, SiteStats
from .verify import Problem, VerifyReport, verify_cache
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
