from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test folders need not outlive a power cut; the test of the syncing sets it back."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
