"""Derives a cache's tokens, documents and tokenizer again from their source, so that no file vouches for itself."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..shared.cache.commits import commit_path, commits_of
from ..shared.cache.documents import documents_name
from ..shared.cache.files import read_file
from ..shared.cache.format import MANIFEST, TOKENIZER
from ..shared.cache.growth import Standing, read_head, read_plans, standing_of
from ..shared.cache.problems import Problem
from ..shared.cache.reader import read_sequences
from ..shared.cache.verify import VerifyReport
from ..shared.config.settings import validate
from ..shared.errors import PipelineError
from ..shared.overview.find import frozen_settings
from .config import HarvestConfig
from .data.pack import Block
from .dataset import is_local
from .job import Job
from .prepare import prepare
from .units import dataset_units


def checked_against_source(report: VerifyReport) -> VerifyReport:
    """The report, with what differs from the source where that is on this machine, or a note that says why not.

    A cache with damage of its own is not compared: that comes first.
    """
    path = report.path
    if report.problems:
        return report
    manifest = read_head(path / MANIFEST) if (path / MANIFEST).exists() else None
    here = standing_of(path, read_plans(path), manifest)
    settings = here.plan["config"].get("harvest")
    if not isinstance(settings, dict):
        return _noted(report, "its config is not that of a harvest")
    try:
        config = validate(HarvestConfig, frozen_settings(path)["harvest"])
        if not is_local(config):
            return _noted(report, f"{config.dataset_name} is not on this machine")
        job = prepare(config)
    except PipelineError as error:
        return _noted(report, error.message)
    if job.dataset.identity != here.plan["config"].get("resolved", {}).get("dataset"):
        return _noted(report, f"{config.dataset_name} has changed since")
    found = [*_tokenizer_problems(path, job), *_text_problems(path, here, job, manifest)]
    return replace(report, problems=tuple(found))


def tokenizer_content(job: Job) -> bytes:
    """The file of the model's tokenizer in a cache."""
    assert job.tokenizer is not None
    return bytes(job.tokenizer.backend_tokenizer.to_str(pretty=False).encode())


def _noted(report: VerifyReport, why: str) -> VerifyReport:
    return replace(report, notes=(*report.notes, f"tokens, documents and tokenizer against their source ({why})"))


def _tokenizer_problems(path: Path, job: Job) -> list[Problem]:
    file = path / TOKENIZER
    if file.exists() and read_file(file) != tokenizer_content(job):
        return [Problem(file, "another tokenizer", "the model's", drop=(file,), beside=True)]
    return []


def _text_problems(path: Path, here: Standing, job: Job, manifest: dict[str, Any] | None) -> list[Problem]:
    """Shards and documents that are not what the dataset gives."""
    parts, commits = here.parts, commits_of(path)
    size, lines, problems = here.layout.seqs_per_shard, hashlib.sha256(), []
    for first, block in dataset_units(job.blocks(), parts.segments, job.unit_shards, size):
        for one in block.documents:
            lines.update(one.to_line())
        for index, start in enumerate(range(0, len(block), size)):
            shard = first + index
            if (shard, 0) in commits and shard < here.layout.n_shards:
                kept = read_sequences(path, parts, shard)
                if name := _differs(kept, block[start : start + size]):
                    file = commit_path(path, shard)
                    problems.append(Problem(file, f"{name} of other text", "the dataset's", drop=(file,), shard=shard))
    file = path / documents_name(parts.last_longer)
    if manifest is not None and file.exists() and hashlib.sha256(read_file(file)).digest() != lines.digest():
        drop = (file, path / MANIFEST)
        problems.append(Problem(file, "documents that differ", "the dataset's", drop=drop, beside=True))
    return problems


def _differs(kept: dict[str, Any], block: Block) -> str | None:
    """The first array that differs."""
    n = len(block)
    names = ("tokens", "doc_id", "pos_in_doc", "flags")
    return next((name for name in names if not np.array_equal(kept[name][:n], getattr(block, name))), None)
