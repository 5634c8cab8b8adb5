"""Cache format, version 1: names, shapes and sizes. The written specification is docs/cache-format.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import IntFlag
from typing import Any, Literal

import numpy as np

from shared.errors import DataError, UsageError

FORMAT_NAME = "activation-cache"
FORMAT_VERSION = 1

PLAN = "plan.json"
MANIFEST = "manifest.json"
COMMITS = "commits"
ARRAYS = "acts.zarr"
LOCK = ".lock"

CRC_BYTES = 4
"""Every chunk file ends in the little-endian CRC-32C of its payload."""

DEFAULT_SHARD_ROWS = 8192

LogicalDtype = Literal["bfloat16", "float32"]

STORED: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4")}
"""Logical dtype of a site → the dtype of its Zarr array. Zarr has no bfloat16, so the bits are kept as uint16."""


class Flag(IntFlag):
    """Bits of the ``flags`` array, one byte for each row."""

    BOS = 1
    EOS = 2
    PADDING = 4
    DOC_START = 8


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
class SiteSpec:
    """One array of activations.

    Attributes:
        name: the site, ``layer_08.resid_mid`` or ``module.path:out`` (shared.sites).
        width: d, the size of one row.
        logical_dtype: what a row's numbers are; ``bfloat16`` is stored as uint16 bits.
        module_path: the module whose input or output this is.
        layer: index of the layer, None for a free module path.
        kind: ``resid_mid``, …; None for a free module path.
        io: which side of the module.
    """

    name: str
    width: int
    logical_dtype: LogicalDtype = "bfloat16"
    module_path: str = ""
    layer: int | None = None
    kind: str | None = None
    io: Literal["in", "out"] = "out"

    def __post_init__(self) -> None:
        if self.logical_dtype not in STORED:
            raise UsageError(f"site {self.name}: dtype {self.logical_dtype!r} is not one of {', '.join(STORED)}")
        if self.width < 1:
            raise UsageError(f"site {self.name}: a row has at least one number, found width {self.width}")
        if not self.name or "/" in self.name or self.name.startswith((".", "__")) or self.name in _RESERVED:
            raise UsageError(f"{self.name!r} cannot name an array of a cache")

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        return STORED[self.logical_dtype]

    @property
    def row_bytes(self) -> int:
        return self.width * self.stored_dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

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
    """

    n_seq: int
    ctx: int
    shard_rows: int = field(default=0)
    sites: tuple[SiteSpec, ...] = ()

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
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise UsageError(f"a site is named twice: {', '.join(sorted(names))}")

    @property
    def n_rows(self) -> int:
        return self.n_seq * self.ctx

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
        sizes = {token_chunk(a.name, shard): self.shard_rows * a.dtype.itemsize + CRC_BYTES for a in TOKEN_ARRAYS}
        sizes |= {site_chunk(site.name, shard): self.shard_rows * site.row_bytes + CRC_BYTES for site in self.sites}
        return sizes

    def bytes_on_disk(self) -> int:
        """Exact bytes of all chunk files, payload and checksum. Metadata and commits come on top."""
        return self.n_shards * sum(self.files_of(0).values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sites": [site.to_dict() for site in self.sites]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Layout:
        sites = tuple(SiteSpec.from_dict(site) for site in value["sites"])
        return cls(n_seq=value["n_seq"], ctx=value["ctx"], shard_rows=value["shard_rows"], sites=sites)


def default_shard_rows(ctx: int) -> int:
    """As many whole sequences as fit into 8192 rows, at least one."""
    return max(1, DEFAULT_SHARD_ROWS // ctx) * ctx


def token_chunk(array: str, shard: int) -> str:
    """Path of a chunk file below ``acts.zarr`` (Zarr's default key encoding, "."-separated: one flat folder)."""
    return f"{array}/c.{shard}.0"


site_chunk = token_chunk


def commit_name(shard: int) -> str:
    return f"{shard:06d}.json"


def shard_of_commit(name: str) -> int | None:
    """The shard that a file name in ``commits/`` stands for; None for any other file."""
    match = re.fullmatch(r"(\d{6,})\.json", name)
    return int(match[1]) if match else None


def check_version(path: object, head: Mapping[str, Any]) -> None:
    """Raises a DataError unless the plan or manifest is of the format and the version this code reads."""
    found = (head.get("format"), head.get("format_version"))
    if found != (FORMAT_NAME, FORMAT_VERSION):
        raise DataError(
            f"{path} is {found[0]!r} of version {found[1]!r}, expected {FORMAT_NAME!r} of version {FORMAT_VERSION}",
            hint="read it with the version of this tool that wrote it, or harvest it again",
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
