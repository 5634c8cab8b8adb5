"""The shape of every JSON document that a cache or run holds, checked by pydantic before anything is computed from it.

Documents carry a seal (shared.cache.files), so a damaged one is refused before it comes here. What comes here has been
written by a program: this one, another, or somebody who means harm. Fields that are not listed are allowed, since other
programs may add their own; a listed one has the right type and lies within bounds that no real document comes near.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from .errors import DataError, repair_command

Count = Annotated[int, Field(strict=True, ge=0, le=1 << 48)]
Positive = Annotated[int, Field(strict=True, ge=1, le=1 << 40)]
Small = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Vector = Annotated[str, Field(max_length=1 << 30)]
Path_ = Annotated[str, Field(min_length=1, max_length=4096)]
Document = dict[str, Any]


class Chunk(TypedDict):
    bytes: Count
    crc32c: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class SumsOf(TypedDict):
    """shared.cache.stats.Moments."""

    n: Count
    sum: Vector
    sum_sq: Vector
    sum_norm: Number
    sum_norm_sq: Number


class Statistics(TypedDict):
    """shared.cache.stats.SiteStats."""

    first: SumsOf
    rest: SumsOf
    position_n: list[Count]
    position_sum_norm: Vector
    nonfinite: Count


class Commit(TypedDict):
    """commits/<shard>.json."""

    identity: Name
    shard: Count
    sequences: Positive
    tokens: Count
    tokens_sha256: Sha256
    files: dict[Path_, Chunk]
    statistics: dict[Name, Statistics]


class _Quantised(TypedDict, total=False):
    quantised: Literal["fp8", "int8"]


class Site(_Quantised):
    """shared.cache.format.SiteSpec."""

    name: Name
    width: Small
    logical_dtype: Literal["bfloat16", "float32"]
    module_path: str
    layer: Annotated[int, Field(strict=True, ge=-(1 << 16), le=1 << 16)] | None
    kind: str | None
    io: Literal["in", "out", "nogain"]


class _Chunked(TypedDict, total=False):
    chunk_rows: Positive


class Shapes(_Chunked):
    """The layout of a plan or manifest."""

    n_seq: Positive
    ctx: Small
    shard_rows: Positive
    sites: list[Site]


class Generation(TypedDict):
    identity: Name
    n_seq: Positive
    sites: list[Name]


class _Grown(TypedDict, total=False):
    history: list[Generation]


class Plan(_Grown):
    """plan.json, plan.1.json, …"""

    format: str
    format_version: Count
    identity: Name
    config: Document
    layout: Shapes
    provenance: Document


class _Optional(TypedDict, total=False):
    massive: dict[Name, Document]


class Manifest(Plan, _Optional):
    """manifest.json."""

    n_seq: Positive
    n_tokens: Count
    bytes: Count
    commits_sha256: Sha256
    statistics: dict[Name, Statistics]
    extra: Document


class Massive(TypedDict):
    """An entry of `massive` in a manifest."""

    median_norm: Number
    dimensions: list[Count]
    rows: Vector
    moments: SumsOf


class Recorded(TypedDict):
    """Size and sha256 of a file of a run, or of its first bytes if it grows."""

    bytes: Count
    sha256: Sha256


class State(TypedDict):
    """checkpoints/step_<n>/state.json."""

    format_version: Count
    step: Count
    sha256: dict[Path_, Sha256]
    state: Document
    files: dict[Path_, Recorded]


class _Trained(TypedDict, total=False):
    summary: Document
    cache: Document
    training: Document
    files: dict[Path_, Recorded]
    source_widths: list[Small]
    target_widths: list[Small]


class Final(_Trained):
    """config.json of a finished coder."""

    format_version: Count
    coder: Document
    d_in: Small
    d_out: Small
    tied: Flag
    sha256: Sha256


class _Cached(TypedDict, total=False):
    cache: Document


class Provenance(_Cached):
    """provenance.json of a run."""

    config_sha256: Sha256


class _Column(TypedDict):
    label: str


class Table(TypedDict):
    """A table of report.json."""

    key: Name
    columns: list[_Column]
    rows: list[list[Any]]


class ReportedFigure(TypedDict):
    """A headline figure of report.json."""

    label: str
    value: Number | None
    with_bos: Number | None
    without_massive: Number | None
    null: Number | None
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)] | None
    better: str | None
    definition: str


class Reported(TypedDict):
    """One report on one run."""

    figures: dict[str, ReportedFigure]
    tables: list[Table]


class _Facts(TypedDict, total=False):
    path: Path_


class ReportedRun(TypedDict):
    """A run or control of report.json."""

    name: Name
    folder: Path_
    trained: Flag
    facts: _Facts
    reports: dict[str, Reported]


class _Comparison(TypedDict):
    tables: list[Table]


class _Compared(TypedDict, total=False):
    comparison: _Comparison | None


class Report(_Compared):
    """report.json."""

    schema_version: Count
    runs: list[ReportedRun]


class Scored(TypedDict):
    """A score of a label: balanced accuracy with its 95 % interval."""

    value: Number
    low: Number
    high: Number


class ControlScores(TypedDict):
    """What a label that is not the latent's own scores."""

    detection: Scored | None
    fuzzing: Scored | None


class ExplainedLatent(ControlScores):
    """One latent in explanations.json."""

    latent: Count
    label: Annotated[str, Field(min_length=1, max_length=1000)]
    controls: dict[Name, ControlScores]


class ExplanationsFile(TypedDict):
    """explanations/<judge>/explanations.json of a run."""

    format_version: Count
    coder_sha256: Sha256
    judge: Document
    latents: list[ExplainedLatent]


def checked(shape: type, value: object, file: Path, hint: str | None = None) -> dict[str, Any]:
    """The document itself, if it has this shape.

    Raises:
        DataError: it has not; names the fields.
    """
    try:
        _adapter(shape).validate_python(value)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc'])) or 'document'}: {one['msg']}" for one in error.errors()[:3]]
        raise DataError(f"{file} is not of this format: {'; '.join(found)}", hint or repair_command(file)) from None
    assert isinstance(value, Mapping)
    return dict(value)


@cache
def _adapter(shape: type) -> TypeAdapter[Any]:
    return TypeAdapter(shape)
