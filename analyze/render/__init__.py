"""Reports as files: a page of HTML, Markdown, JSON, and Parquet tables, in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ...shared.cache.files import sync_folder, sync_tree
from ...shared.console import Console
from ...shared.saved_report import SCHEMA
from ..compare.runs import Comparison
from ..config import AnalyzeConfig
from ..subject.analysed import Analysed
from .document import build_document
from .folder import check_folder
from .html import write_html
from .latents import write_tables
from .markdown import to_markdown


def write_report(
    folder: Path,
    analysed: Sequence[Analysed],
    comparison: Comparison | None,
    config: AnalyzeConfig,
    console: Console,
) -> Path:
    """Write the folder whole, in place of an older report of the same name; returns index.html."""
    check_folder(folder, SCHEMA, config, [Path(one.facts["path"]) for one in analysed if one.facts["trained"]])
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = folder.parent / f".{folder.name}.partial", folder.parent / f".{folder.name}.old"
    for leftover in (partial, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    document = build_document(analysed, comparison, config)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    (partial / "report.json").write_text(text, encoding="utf-8")
    (partial / "report.md").write_text(to_markdown(document), encoding="utf-8")
    for one, entry in zip(analysed, document["runs"], strict=True):
        below = partial / entry["folder"]
        below.mkdir()
        write_tables(below, one)
    write_html(partial, document, analysed, console, comparison.matches if comparison else None, config.page_latents)
    sync_tree(partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)
    return folder / "index.html"
