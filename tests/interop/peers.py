"""Importing a tool whose modules warn when they are imported."""

from __future__ import annotations

import contextlib
import io
import warnings
from types import ModuleType

import pytest


def peer(name: str) -> ModuleType:
    """A module of a tool; skips the tests of the calling file where it is not installed."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        module: ModuleType = pytest.importorskip(name, exc_type=ImportError)
    return module
