"""The on-disk activation cache: format, writer, reader, statistics. Specification: docs/cache-format.md."""

from __future__ import annotations

from shared.cache.commits import CommitRecord
from shared.cache.format import FORMAT_VERSION, Flag, Layout, SiteSpec, positions
from shared.cache.reader import Cache, open_cache
from shared.cache.stats import Moments, SiteStats
from shared.cache.verify import Problem, VerifyReport, verify_cache
from shared.cache.writer import CacheWriter

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
