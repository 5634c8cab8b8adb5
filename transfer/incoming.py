"""Activations of another program become a cache: same rows, exact numbers, statistics recomputed.

What the source does not say is recorded as not known (`imported.unknown` in the manifest) and never guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.families import family_of
from ..models.folder import model_folder
from ..models.site_names import parse_module_site, parse_site
from ..shared.cache import CacheWriter, Flag, Layout, SiteSpec
from ..shared.cache.files import write_file
from ..shared.cache.format import TOKENIZER
from ..shared.cache.mirror import shown
from ..shared.console import Console, size
from ..shared.errors import DataError, UsageError
from ..shared.hook_names import from_hook_name
from ..shared.provenance import provenance
from .foreign import Foreign
from .opening import open_foreign

CTX = 128
"""Rows put together as a sequence where the source has none; the held-out split is by sequence then."""

_EXACT = {torch.bfloat16: "bfloat16", torch.float16: "float32", torch.float32: "float32"}


@dataclass(frozen=True)
class ImportSettings:
    """What to import, and what is known of it.

    Attributes:
        source: folder or file.
        path: the cache to write.
        sites: column → site, for columns whose name is no site.
        ctx: rows of a sequence, where the source does not say.
        model: name or folder of the model.
        tokenizer: tokenizer.json, or the folder that holds it.
        storage: number format; auto: one that holds the source's numbers exactly.
    """

    source: Path
    path: Path
    sites: Mapping[str, str] = field(default_factory=dict)
    ctx: int | None = None
    model: str | None = None
    tokenizer: Path | None = None
    storage: Literal["auto", "bfloat16", "float32"] = "auto"


@dataclass(frozen=True)
class Imported:
    """The cache that was written."""

    path: Path
    format: str
    rows: int
    padding: int
    ctx: int
    sites: dict[str, str]
    bytes: int
    unknown: tuple[str, ...]
    ignored: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The --json document."""
        return {**self.__dict__, "path": shown(self.path), "unknown": list(self.unknown), "ignored": list(self.ignored)}

    def __str__(self) -> str:
        sites = ", ".join(f"{site} ({column})" if site != column else site for site, column in self.sites.items())
        lines = [f"{shown(self.path)}: {self.rows:,} rows of {sites}, {size(self.bytes)} of chunk files"]
        if self.padding:
            lines.append(f"  the last sequence is filled up with {self.padding} rows of padding")
        if self.unknown:
            lines.append(f"  not known: {', '.join(self.unknown)}")
        if self.ignored:
            lines.append(f"  not imported: {', '.join(self.ignored)}")
        return "\n".join(lines)


def import_cache(settings: ImportSettings, console: Console | None = None) -> Imported:
    """Writes the cache, or resumes writing it.

    Raises:
        UsageError: a column's site is not known, or a setting does not fit the source.
        DataError: the source cannot be read, its arrays do not belong together, or a number is not finite.
    """
    console = console or Console(quiet=True)
    foreign = open_foreign(settings.source)
    columns = _sites(foreign, settings.sites)
    ctx = _ctx(foreign, settings)
    model = settings.model or foreign.model
    n_seq = -(-foreign.n_rows // ctx)
    specs = tuple(_spec(site, foreign, column, settings, model) for site, column in columns.items())
    layout = Layout(n_seq, ctx, sites=specs)
    bos = _bos(foreign, ctx)
    unknown = _unknown(foreign, model, settings.tokenizer, bos)
    config = {
        "harvest": {"model": model, "ctx": ctx, "sites": list(columns), "bos": "none" if bos is None else "auto"},
        "resolved": {"bos_token_id": bos},
        "imported": {
            "format": foreign.format,
            "source_sha256": _digest(foreign),
            "columns": dict(columns),
            "rows": foreign.n_rows,
            "tokens": "tokens" in foreign.ids,
            "unknown": list(unknown),
        },
    }
    with CacheWriter.create(settings.path, layout, config, provenance()) as writer:
        extra = _tokenizer(settings, writer)
        missing = writer.missing_shards()
        with console.progress(layout.n_rows, "rows", "import", done=layout.n_rows - _rows(layout, missing)) as progress:
            for shard in missing:
                _write(writer, shard, foreign, columns, bos)
                progress.advance(len(layout.rows_of(shard)))
        if not writer.complete:
            writer.finish(extra=extra)
    padding = layout.n_rows - foreign.n_rows
    return Imported(
        path=settings.path,
        format=foreign.format,
        rows=foreign.n_rows,
        padding=padding,
        ctx=ctx,
        sites=dict(columns),
        bytes=layout.bytes_on_disk(),
        unknown=unknown,
        ignored=foreign.ignored,
    )


def _rows(layout: Layout, shards: list[int]) -> int:
    return sum(len(layout.rows_of(shard)) for shard in shards)


def _sites(foreign: Foreign, given: Mapping[str, str]) -> dict[str, str]:
    """Site → column. Raises UsageError for a column that is no site and has none given, or a given one not found."""
    if missing := sorted(set(given) - set(foreign.columns)):
        raise UsageError(f"--site {missing[0]}=…: no such column", f"its columns: {', '.join(foreign.columns)}")
    sites: dict[str, str] = {}
    for column in foreign.columns:
        name = given.get(column, column)
        try:
            site = from_hook_name(name)
            parse_site(site)
        except UsageError as error:
            if column in given:
                raise
            raise UsageError(
                f"the site of column {column!r} is not known ({error.message})", f"--site {column}=layer_08.resid_post"
            ) from None
        if site in sites:
            raise UsageError(f"columns {sites[site]!r} and {column!r} are both {site}", "--site COLUMN=SITE")
        sites[site] = column
    return sites


def _ctx(foreign: Foreign, settings: ImportSettings) -> int:
    if foreign.ctx is not None and settings.ctx not in (None, foreign.ctx):
        raise UsageError(f"--ctx {settings.ctx}: the source has sequences of {foreign.ctx} rows", "omit --ctx")
    return foreign.ctx or settings.ctx or CTX


def _spec(site: str, foreign: Foreign, column: str, settings: ImportSettings, model: str | None) -> SiteSpec:
    """The site's array. Its module is known where the model is on this machine and of a known family."""
    found = foreign.columns[column]
    if settings.storage == "auto" and found.dtype not in _EXACT:
        raise UsageError(f"column {column!r} is {found.dtype}, which no storage holds exactly", "--storage float32")
    storage = _EXACT[found.dtype] if settings.storage == "auto" else settings.storage
    layer, kind = parse_site(site)
    if layer is None or kind is None:
        module, io = parse_module_site(site)
        return SiteSpec(site, found.width, storage, module, None, None, io)  # type: ignore[arg-type]
    module, io = _module(layer, kind, model)
    return SiteSpec(site, found.width, storage, module, layer, kind, io)  # type: ignore[arg-type]


def _module(layer: int, kind: str, model: str | None) -> tuple[str, Any]:
    """Module path and side of a site; ("", "out") where the model's family is not known."""
    folder = model_folder(model)
    if folder is None:
        return "", "out"
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError):
        return "", "out"
    family = family_of(config)
    path = None if family is None else family.kinds_of(config).get(kind)
    if family is None or path is None:
        return "", "out"
    return parse_module_site(f"{family.layers}.{layer}{'' if path.startswith(':') else '.'}{path}")


def _bos(foreign: Foreign, ctx: int) -> int | None:
    """The token that begins every sequence, if they all begin with the same one."""
    tokens = foreign.ids.get("tokens")
    if tokens is None:
        return None
    first = tokens[::ctx]
    return int(first[0]) if len(first) > 1 and bool((first == first[0]).all()) else None


def _unknown(foreign: Foreign, model: str | None, tokenizer: Path | None, bos: int | None) -> tuple[str, ...]:
    """What nothing says, in the words of the manifest."""
    return tuple(
        name
        for name, known in (
            ("model", model is not None),
            ("tokens", "tokens" in foreign.ids),
            ("tokenizer", tokenizer is not None),
            ("sequences", foreign.ctx is not None),
            ("BOS", bos is not None),
            ("documents", "doc_id" in foreign.ids),
        )
        if not known
    )


def _digest(foreign: Foreign) -> str:
    digest = hashlib.sha256()
    for file in foreign.files:
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()


def _tokenizer(settings: ImportSettings, writer: CacheWriter) -> dict[str, Any]:
    """Copies tokenizer.json into the cache; its entries of the manifest."""
    if settings.tokenizer is None:
        return {}
    file = settings.tokenizer / "tokenizer.json" if settings.tokenizer.is_dir() else settings.tokenizer
    if not file.is_file():
        raise UsageError(f"--tokenizer: no tokenizer.json at {settings.tokenizer}")
    data, target = file.read_bytes(), writer.path / TOKENIZER
    target.parent.mkdir(exist_ok=True)
    write_file(target, [data])
    writer.publish(TOKENIZER)
    return {"tokenizer": TOKENIZER, "tokenizer_sha256": hashlib.sha256(data).hexdigest()}


def _write(writer: CacheWriter, shard: int, foreign: Foreign, columns: Mapping[str, str], bos: int | None) -> None:
    """Reads, checks and writes one shard; rows beyond the end are padding."""
    layout = writer.layout
    rows, seqs = layout.rows_of(shard), layout.seqs_of(shard)
    stop = min(rows.stop, foreign.n_rows)
    acts = {}
    for site, column in columns.items():
        block = foreign.read(column, rows.start, stop)
        finite = block.isfinite().all(1)
        if not bool(finite.all()):
            bad = rows.start + int((~finite).nonzero()[0])
            raise DataError(
                f"column {column!r}: row {bad} has a number that is not finite ({int((~finite).sum()):,} such rows in "
                f"rows {rows.start:,} to {stop:,})",
                "leave these rows out of the source",
            )
        acts[site] = _padded(block, len(rows), getattr(torch, layout.site(site).logical_dtype))
    shape = (len(seqs), layout.ctx)
    real = (np.arange(rows.start, rows.stop) < foreign.n_rows).reshape(shape)
    ids = {name: _taken(values, rows.start, stop, shape) for name, values in foreign.ids.items()}
    place = np.broadcast_to(np.arange(layout.ctx), shape)
    writer.write_shard(
        shard,
        tokens=ids.get("tokens", np.zeros(shape, np.int64)),
        doc_id=ids.get("doc_id", np.broadcast_to(np.arange(seqs.start, seqs.stop)[:, None], shape)),
        pos_in_doc=ids.get("pos_in_doc", np.minimum(place, 65_535)),
        flags=_flags(ids.get("flags"), place, real, bos),
        acts=acts,
    )


def _flags(
    given: NDArray[np.int64] | None, place: NDArray[Any], real: NDArray[np.bool_], bos: int | None
) -> NDArray[np.uint8]:
    """Flags of each row: as the source has them, or what its sequences show."""
    flags = np.zeros(place.shape, np.uint8) if given is None else given.astype(np.uint8)
    if given is None:
        flags[:, 0] |= np.uint8(Flag.BOS if bos is not None else Flag.DOC_START)
        if bos is not None and place.shape[1] > 1:
            flags[:, 1] |= np.uint8(Flag.DOC_START)
    return np.where(real, flags, np.uint8(Flag.PADDING))


def _padded(block: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    out = torch.zeros(rows, block.shape[1], dtype=dtype)
    out[: len(block)] = block.to(dtype)
    return out


def _taken(values: NDArray[np.int64], start: int, stop: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    out = np.zeros(shape[0] * shape[1], np.int64)
    out[: stop - start] = values[start:stop]
    return out.reshape(shape)
