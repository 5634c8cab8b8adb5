"""The tables on disk: what their metadata says, and that the page explains every column."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.analyze.planted import World


@pytest.mark.parametrize("name", ["pairs", "neighbours", "position", "latents"])
def test_tables_name_their_schema_and_the_page_explains_every_column(world: World, name: str, root: Path) -> None:
    schema = pq.read_schema(world.folder / f"{name}.parquet")
    document = world.document
    assert schema.metadata == {
        b"schema": document["schema"].encode(),
        b"schema_version": str(document["schema_version"]).encode(),
        b"table": name.encode(),
        b"run": b"planted",
    }
    page = (root / "docs" / "analysis.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}.parquet` |"))
    documented = re.findall(r"`([a-z0-9_]+)`", row.split("|")[2])
    assert documented == schema.names
