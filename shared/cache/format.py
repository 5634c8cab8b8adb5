"""The cache format: names, shapes and sizes. The written specification is docs/cache-format.md."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import IntFlag
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError, VersionError
from .files import crc32c

Quantised = Literal["fp8", "int8"]

CODES: dict[str, np.dtype[np.generic]] = {"fp8": np.dtype("u1"), "int8": np.dtype("i1")}
"""dtype of the codes in Zarr, which has no float8: its bits are kept as uint8."""

SCALE = np.dtype("<f4")

FORMAT_NAME = "activation-cache"
FORMAT_VERSION = 3
"""The version that this code reads and writes."""

MOST_SHARDS = 10_000_000
MOST_NUMBERS = 1 << 31
"""Bounds that no real cache comes near; a layout beyond them is refused before anything is computed from it."""

PLAN = "plan.json"
MANIFEST = "manifest.json"
HISTORY = "history"
"""Key of a plan or manifest: the generations before its own."""
COMMITS = "commits"
ARRAYS = "acts.zarr"
LOCK = ".lock"

CRC_BYTES = 4
"""A CRC-32C, little-endian."""

INDEX_ENTRY = np.dtype([("offset", "<u8"), ("bytes", "<u8")])
"""One entry, for one chunk, of the index at the end of a file with the sharding codec."""

DEFAULT_SHARD_ROWS = 8192
DEFAULT_CHUNK_ROWS = 1024

LogicalDtype = Literal["bfloat16", "float32"]

STORED: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4")}
"""Logical dtype of a site → the dtype of its Zarr array. Zarr has no bfloat16, so the bits are kept as uint16."""


TOKENIZER = "tokenizer/tokenizer.json"
"""The tokenizer in a cache's folder."""


class Flag(IntFlag):
    """Bits of the ``flags`` array, one byte for each row. NONFINITE is set in memory only (Cache.without_nonfinite)."""

    BOS = 1
    EOS = 2
    PADDING = 4
    DOC_START = 8
    TEMPLATE = 16
    UNTRAINED = 32
    NONFINITE = 64


def positions(row: NDArray[np.integer], flags: NDArray[np.uint8], ctx: int) -> NDArray[np.int32]:
    """Position of rows: their place in the sequence, but 0 for every row flagged BOS.

    Attention is causal, and a BOS inside a sequence, where documents are kept apart, attends to itself alone, like the
    first token: its activation is the same constant vector. So "excluding position 0" excludes every such row.

    Args:
        row: rows in the cache, or places in a sequence; broadcast against ``flags``.
        flags: :class:`Flag` bits of the same rows.
        ctx: tokens in a sequence.
    """
    bos = (flags & np.uint8(Flag.BOS)) != 0
    return np.where(bos, 0, row % ctx).astype(np.int32)


@dataclass(frozen=True)
class TokenArray:
    """One of the arrays that describe the tokens, [n_seq, ctx]; ``fill`` stands where no sequence was written."""

    name: str
    dtype: np.dtype[Any]
    fill: int


TOKEN_ARRAYS = (
    TokenArray("tokens", np.dtype("<i4"), 0),
    TokenArray("doc_id", np.dtype("<u4"), 0),
    TokenArray("pos_in_doc", np.dtype("<u2"), 0),
    # A shard with fewer sequences than its chunk has room for is filled up with padding rows. So a cache can grow past
    # a short shard without rewriting it: its empty places simply stay padding.
    TokenArray("flags", np.dtype("u1"), int(Flag.PADDING)),
)


@dataclass(frozen=True)
class StoredArray:
    """One Zarr array: each shard of the cache is one file of it.

    A file is a payload, the C-order memory of the shard from byte 0, and a trailer. With Zarr's sharding codec the
    payload still is that: its chunks are tiled on the first axis, in order, and the trailer is their index.

    Attributes:
        name: folder below ``acts.zarr``.
        dtype, fill: of its numbers.
        shape: of the whole array.
        shard: shape of what one file holds.
        chunk: shape of a chunk of the sharding codec; None without that codec.
    """

    name: str
    dtype: np.dtype[Any]
    fill: int
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...] | None = None

    def file(self, shard: int) -> str:
        """Path below ``acts.zarr`` (Zarr's default key encoding, "."-separated: one flat folder)."""
        return f"{self.name}/c.{shard}" + ".0" * (len(self.shape) - 1)

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def payload_bytes(self) -> int:
        return self.shard[0] * self.row_bytes

    @property
    def file_bytes(self) -> int:
        return self.payload_bytes + len(self.trailer(0))

    def trailer(self, payload_crc: int) -> bytes:
        """What follows the payload: its CRC-32C; with the sharding codec the index and the CRC-32C of that."""
        if self.chunk is None:
            return payload_crc.to_bytes(CRC_BYTES, "little")
        index = np.empty(self.shard[0] // self.chunk[0], INDEX_ENTRY)
        index["bytes"] = self.chunk[0] * self.row_bytes
        index["offset"] = np.arange(len(index)) * self.chunk[0] * self.row_bytes
        data = index.tobytes()
        return data + crc32c(data).to_bytes(CRC_BYTES, "little")


@dataclass(frozen=True)
class SiteSpec:
    """One array of activations.

    Attributes:
        name: the site, ``layer_08.resid_mid`` or ``module.path:out`` (models.site_names).
        width: d, the size of one row.
        logical_dtype: what a row's numbers are; ``bfloat16`` is stored as uint16 bits.
        module_path: the module whose input or output this is.
        layer: index of the layer, None for a free module path.
        kind: ``resid_mid``, …; None for a free module path.
        io: the module's input or output, or a norm's output without gain and bias.
        quantised: stored as one byte per number and one scale per row (shared.cache.quantise); None: not quantised.
    """

    name: str
    width: int
    logical_dtype: LogicalDtype = "bfloat16"
    module_path: str = ""
    layer: int | None = None
    kind: str | None = None
    io: Literal["in", "out", "nogain"] = "out"
    quantised: Quantised | None = None

    def __post_init__(self) -> None:
        if self.quantised is not None and (self.quantised not in CODES or self.logical_dtype != "bfloat16"):
            raise UsageError(
                f"site {self.name}: found {self.quantised!r} of {self.logical_dtype}, expected "
                f"bfloat16 for {', '.join(CODES)}"
            )
        if self.logical_dtype not in STORED:
            raise UsageError(f"site {self.name}: dtype {self.logical_dtype!r} is not one of {', '.join(STORED)}")
        if self.width < 1:
            raise UsageError(f"site {self.name}: a row has at least one number, found width {self.width}")
        if not self.name or "/" in self.name or self.name.startswith((".", "__")) or self.name in _RESERVED:
            raise UsageError(f"{self.name!r} cannot name an array of a cache")

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        return CODES[self.quantised] if self.quantised else STORED[self.logical_dtype]

    @property
    def storage(self) -> str:
        """``bfloat16``, ``float32``, ``fp8`` or ``int8``."""
        return self.quantised or self.logical_dtype

    @property
    def scale(self) -> str | None:
        """Name of the array with the rows' scales; None if not quantised."""
        return f"{self.name}.scale" if self.quantised else None

    @property
    def arrays(self) -> tuple[str, ...]:
        """The site's arrays: its rows, and the scales if quantised."""
        return (self.name, self.scale) if self.scale else (self.name,)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on disk, including its scale."""
        return self.width * self.stored_dtype.itemsize + (SCALE.itemsize if self.quantised else 0)

    @property
    def logical_row_bytes(self) -> int:
        """Bytes of a row in the logical dtype."""
        return self.width * STORED[self.logical_dtype].itemsize

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able; without ``quantised`` where it is not."""
        return {key: value for key, value in asdict(self).items() if key != "quantised" or value is not None}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SiteSpec:
        unknown = set(value) - {entry.name for entry in fields(cls)}
        if unknown:
            raise DataError(
                f"a site of the cache has fields that format version {FORMAT_VERSION} does not know: {unknown}"
            )
        return cls(**value)


_RESERVED = {array.name for array in TOKEN_ARRAYS}


@dataclass(frozen=True)
class Layout:
    """Shapes of a cache: how many sequences, of how many tokens, cut into shards of whole sequences.

    Attributes:
        n_seq: sequences.
        ctx: tokens in a sequence; row = sequence · ctx + position.
        shard_rows: rows in a shard (= in a chunk), a multiple of ctx; 0 chooses the most that fit into 8192 rows,
            at least one sequence.
        sites: the arrays of activations.
        chunk_rows: rows in a chunk of Zarr's sharding codec, whole sequences that divide the shard; 0: without that
            codec, a shard is one chunk.
    """

    n_seq: int
    ctx: int
    shard_rows: int = field(default=0)
    sites: tuple[SiteSpec, ...] = ()
    chunk_rows: int = 0

    def __post_init__(self) -> None:
        if self.n_seq < 1 or self.ctx < 1:
            raise UsageError(f"a cache has at least one sequence of one token, found {self.n_seq} of {self.ctx}")
        if not self.shard_rows:
            object.__setattr__(self, "shard_rows", default_shard_rows(self.ctx))
        object.__setattr__(self, "sites", tuple(self.sites))
        if self.shard_rows < 1 or self.shard_rows % self.ctx:
            raise UsageError(
                f"a shard holds whole sequences: shard_rows {self.shard_rows} is not a multiple of ctx {self.ctx}"
            )
        if self.chunk_rows and (self.chunk_rows < 0 or self.chunk_rows % self.ctx or self.shard_rows % self.chunk_rows):
            raise UsageError(
                f"a chunk holds whole sequences, and a shard whole chunks: chunk_rows {self.chunk_rows} is no multiple "
                f"of ctx {self.ctx}, or does not divide shard_rows {self.shard_rows}"
            )
        if self.n_shards > MOST_SHARDS or self.shard_rows * max([1, *(s.width for s in self.sites)]) > MOST_NUMBERS:
            raise UsageError(
                f"{self.n_shards:,} shards of {self.shard_rows:,} rows: a cache has at most {MOST_SHARDS:,} shards, "
                f"and a chunk at most {MOST_NUMBERS:,} numbers"
            )
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise UsageError(f"a site is named twice: {', '.join(sorted(names))}")

    @property
    def n_rows(self) -> int:
        return self.n_seq * self.ctx

    @cached_property
    def arrays(self) -> dict[str, StoredArray]:
        """Every Zarr array by its name: the tokens', then the sites' with their scales."""
        found: list[StoredArray] = []

        def add(name: str, dtype: np.dtype[Any], fill: int, unit: int, *inner: int) -> None:
            """``unit``: rows of the cache to a step along the first axis."""
            length, shard, chunk = (rows // unit for rows in (self.n_rows, self.shard_rows, self.chunk_rows))
            found.append(
                StoredArray(name, dtype, fill, (length, *inner), (shard, *inner), (chunk, *inner) if chunk else None)
            )

        for array in TOKEN_ARRAYS:
            add(array.name, array.dtype, array.fill, self.ctx, self.ctx)
        for site in self.sites:
            add(site.name, site.stored_dtype, 0, 1, site.width)
            if site.scale:
                add(site.scale, SCALE, 0, 1)
        return {array.name: array for array in found}

    @property
    def seqs_per_shard(self) -> int:
        return self.shard_rows // self.ctx

    @property
    def n_shards(self) -> int:
        return -(-self.n_seq // self.seqs_per_shard)

    def seqs_of(self, shard: int) -> range:
        """The sequences of a shard."""
        self._check(shard)
        start = shard * self.seqs_per_shard
        return range(start, min(start + self.seqs_per_shard, self.n_seq))

    def rows_of(self, shard: int) -> range:
        """The rows of a shard."""
        seqs = self.seqs_of(shard)
        return range(seqs.start * self.ctx, seqs.stop * self.ctx)

    def _check(self, shard: int) -> None:
        if not 0 <= shard < self.n_shards:
            raise UsageError(f"shard {shard} is outside the cache's {self.n_shards} shards")

    def site(self, name: str) -> SiteSpec:
        for site in self.sites:
            if site.name == name:
                return site
        raise UsageError(f"the cache has no site {name!r}: it holds {', '.join(s.name for s in self.sites) or 'none'}")

    def files_of(self, shard: int) -> dict[str, int]:
        """Path below ``acts.zarr`` → bytes of every chunk file of a shard; a short shard's too have full size."""
        self._check(shard)
        return {array.file(shard): array.file_bytes for array in self.arrays.values()}

    def bytes_on_disk(self) -> int:
        """Exact bytes of all chunk files, payload and trailer. Metadata and commits come on top."""
        return self.n_shards * sum(self.files_of(0).values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able; without ``chunk_rows`` where it is 0."""
        found = asdict(self) | {"sites": [site.to_dict() for site in self.sites]}
        return {key: value for key, value in found.items() if key != "chunk_rows" or value}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Layout:
        """The layout in a plan or manifest. Raises DataError where it describes no possible cache."""
        try:
            sites = tuple(SiteSpec.from_dict(site) for site in value["sites"])
            return cls(value["n_seq"], value["ctx"], value["shard_rows"], sites, value.get("chunk_rows", 0))
        except UsageError as error:
            raise DataError(f"not the layout of a cache: {error.message}") from None


def default_shard_rows(ctx: int) -> int:
    """As many whole sequences as fit into 8192 rows, at least one."""
    return max(1, DEFAULT_SHARD_ROWS // ctx) * ctx


def default_chunk_rows(ctx: int, shard_rows: int) -> int:
    """As many whole sequences as fit into 1024 rows and divide the shard, at least one."""
    most = max(1, DEFAULT_CHUNK_ROWS // ctx)
    return max(n for n in range(1, most + 1) if shard_rows // ctx % n == 0) * ctx


def plan_name(generation: int) -> str:
    """``plan.json``, ``plan.1.json``, …: a cache has one for each time that it grew."""
    return f"plan.{generation}.json" if generation else PLAN


def commit_name(shard: int, generation: int = 0) -> str:
    """``000007.json``; ``000007.2.json`` for the sites that generation 2 added to a shard that was there."""
    return f"{shard:06d}.{generation}.json" if generation else f"{shard:06d}.json"


def shard_of_commit(name: str) -> tuple[int, int] | None:
    """The shard and the generation that a file name in ``commits/`` stands for; None for any other file."""
    match = re.fullmatch(r"(\d{6,})(?:\.([1-9]\d*))?\.json", name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def check_version(path: object, head: Mapping[str, Any]) -> None:
    """Raises a DataError unless the plan or manifest is of the format and the version this code reads."""
    found = (head.get("format"), head.get("format_version"))
    if found != (FORMAT_NAME, FORMAT_VERSION):
        raise VersionError(
            f"{path} is {found[0]!r} of version {found[1]!r}, expected {FORMAT_NAME!r} of version {FORMAT_VERSION}",
            hint="read it with the program version that wrote it, or harvest again",
        )


def differences(found: Any, expected: Any, where: str = "", owner: str = "the cache") -> list[str]:
    """Every leaf in which two JSON-able values differ: ``path: the cache has …, this config has …``, in path order.

    Args:
        owner: what ``found`` belongs to.
    """
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        lines: list[str] = []
        for key in sorted(set(found) | set(expected)):
            path = f"{where}.{key}" if where else str(key)
            if key not in found:
                lines.append(f"{path}: {owner} has none, this config has {json.dumps(expected[key])}")
            elif key not in expected:
                lines.append(f"{path}: {owner} has {json.dumps(found[key])}, this config has none")
            else:
                lines += differences(found[key], expected[key], path, owner)
        return lines
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [
            line
            for i, (a, b) in enumerate(zip(found, expected, strict=True))
            for line in differences(a, b, f"{where}[{i}]", owner)
        ]
    if found == expected and type(found) is type(expected):
        return []
    return [f"{where}: {owner} has {json.dumps(found)}, this config has {json.dumps(expected)}"]
