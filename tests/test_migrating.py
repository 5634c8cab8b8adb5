"""docs/migrating.md names settings that exist here; the peers' names were checked by hand, in the versions it gives."""

from __future__ import annotations

import re
from pathlib import Path

from sparse_pipeline.resolve import pipeline_class, variants
from sparse_pipeline.shared.config.settings import config_classes, field_types

PAGE = (Path(__file__).resolve().parent.parent / "docs/migrating.md").read_text(encoding="utf-8")
NAMES = {name for cls in config_classes(pipeline_class()) for name in field_types(cls)}


def test_every_setting_in_the_column_here_exists() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    quoted = [name for row in rows if len(row) == 3 for name in re.findall(r"`([^`]+)`", row[1])]
    dotted = [name for name in quoted if re.fullmatch(r"\.?[a-z_0-9]+(\.[a-z_0-9]+)*(: .*)?", name)]
    assert len(dotted) > 60
    parts = [part for name in dotted for part in re.sub(r": .*", "", name).strip(".").split(".")]
    assert not [part for part in parts if part not in {*NAMES, "harvest", "train"}]


def test_every_variant_that_is_named_exists() -> None:
    named = re.findall(r"--variant ([a-z-]+)", PAGE)
    assert len(named) > 5
    assert set(named) <= set(variants())
