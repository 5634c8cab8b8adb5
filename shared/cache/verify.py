"""Reads every byte of a cache and checks it against the commits and the manifest."""

from __future__ import annotations

import hashlib
import shlex
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.settings import identity
from ..console import Console, Progress, count
from ..errors import DataError
from .arrays import metadata_problems
from .commits import CommitRecord, commit_path, commits_of, load_commit, load_shard, size_problems
from .files import crc32c, read_json
from .format import ARRAYS, MANIFEST, PLAN, TOKEN_ARRAYS, Layout, check_version
from .growth import Parts, generations_of, plan_files
from .reader import Cache, massive_entry
from .rows import first_rows, text_rows
from .stats import SiteStats

READERS = 4


@dataclass(frozen=True)
class Problem:
    """One file that does not match the cache's records."""

    path: Path
    found: str
    expected: str
    beside: bool = False  # a file beside the arrays: documents, tokenizer

    def __str__(self) -> str:
        return f"{self.path}: found {self.found}, expected {self.expected}"


@dataclass(frozen=True)
class VerifyReport:
    """Outcome of :func:`verify_cache`.

    Attributes:
        path: the cache.
        complete: the cache is finished, and every shard has its commit.
        problems: all damage found; being unfinished is not a problem.
        shards: committed shards that were read.
        bytes: bytes of chunk files that were read.
        remove: files to delete so that the same harvest writes the damaged parts again.
    """

    path: Path
    complete: bool
    problems: tuple[Problem, ...]
    shards: int
    bytes: int
    remove: tuple[Path, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def hint(self) -> str | None:
        """The commands that repair the cache: the harvest writes only the missing files."""
        if self.ok:
            return None
        remove = f"{shlex.join(['rm', *map(str, self.remove)])} && " if self.remove else ""
        return f"{remove}{shlex.join(['pipeline', 'harvest', '-c', str(self.path)])}"

    def to_dict(self) -> dict[str, Any]:
        problems = [{"path": str(p.path), "found": p.found, "expected": p.expected} for p in self.problems]
        return {
            "path": str(self.path),
            "ok": self.ok,
            "complete": self.complete,
            "shards": self.shards,
            "bytes": self.bytes,
            "problems": problems,
        }

    def __str__(self) -> str:
        state = "complete" if self.complete else "not finished"
        lines = [
            f"{self.path}: {count(self.shards, 'shard')}, {self.bytes:,} bytes read, {state}",
            *map(str, self.problems),
        ]
        return "\n".join([*lines, "ok" if self.ok else count(len(self.problems), "problem")])


def verify_cache(path: Path | str, console: Console | None = None) -> VerifyReport:
    """Checks sizes, checksums, token hashes, counts, array metadata, statistics and the manifest of a cache.

    Where nothing else is wrong, the massive rows in the manifest are found again and compared.

    Raises:
        DataError: no cache with a known format version at ``path``, or its plan cannot be read.
    """
    path = Path(path)
    if not (path / PLAN).exists():
        raise DataError(f"no cache at {path}", hint="pipeline harvest writes one; pipeline status lists caches")
    finished = (path / MANIFEST).exists()
    plans = plan_files(path)
    head = read_json(path / MANIFEST if finished else plans[-1])
    check_version(path, head)
    layout = Layout.from_dict(head["layout"])
    parts, commits = Parts(layout, generations_of(head)), commits_of(path)
    growing = finished and len(plans) > len(parts.generations)
    shards = sorted({shard for shard, _ in commits if shard < layout.n_shards})
    missing = parts.missing(commits)

    # a writer that was stopped while it created the arrays creates the rest on its next start
    problems = [Problem(*item) for item in metadata_problems(path, layout, growing)] if finished or shards else []
    if head.get("identity") != identity(head["config"]):
        problems.append(Problem(path / PLAN, f"identity {head.get('identity')}", identity(head["config"])))
    if finished:
        lacking = [commit_path(path, shard, part) for shard in missing for part in missing[shard]]
        problems += [Problem(file, "no commit", "one for every shard") for file in lacking]
    wrong_size = [Problem(*item) for item in size_problems(path, parts.expected_files(commits))]
    problems += wrong_size

    skip = {problem.path for problem in wrong_size}
    total = sum(parts.expected_files(commits).values())
    records: dict[int, CommitRecord] = {}
    with (console or Console(quiet=True)).progress(total, "B", "verify") as progress:
        reader = _ShardReader(path, parts, commits, skip, finished, progress)
        with ThreadPoolExecutor(READERS) as pool:
            for shard, (record, found) in zip(shards, pool.map(reader.check, shards), strict=True):
                problems += found
                if record is not None:
                    records[shard] = record
    if finished and len(records) == layout.n_shards and not missing:
        problems += _manifest_problems(path, parts, head, [records[shard] for shard in shards])
        if not problems:
            problems += _massive_problems(path, parts, head)
    if finished:
        problems += _side_file_problems(path, head.get("extra", {}))
    remove = _to_remove(path, parts, commits, problems)
    return VerifyReport(path, finished and not missing, tuple(problems), len(shards), reader.bytes, remove)


def _to_remove(
    path: Path, parts: Parts, commits: Collection[tuple[int, int]], problems: Sequence[Problem]
) -> tuple[Path, ...]:
    """Files to delete: the commits of damaged chunks, and any other damaged file.

    A damaged file beside the arrays also requires a new manifest, which holds its hash. Missing files and the plan are
    never listed.
    """
    vouching: dict[Path, Path] = {}
    for shard in range(parts.layout.n_shards):
        for part in parts.of(shard):
            if (shard, part) in commits:
                chunks = parts.files(shard, part)
                vouching |= {path / ARRAYS / name: commit_path(path, shard, part) for name in chunks}
    found = [vouching.get(problem.path, problem.path) for problem in problems]
    if any(problem.beside for problem in problems):
        found.append(path / MANIFEST)
    return tuple(file for file in dict.fromkeys(found) if file.exists() and file.name != PLAN)


class _ShardReader:
    """Checks one shard at a time, from several threads."""

    def __init__(
        self,
        path: Path,
        parts: Parts,
        commits: Collection[tuple[int, int]],
        skip: set[Path],
        finished: bool,
        progress: Progress,
    ) -> None:
        self.path, self.layout, self.skip, self.finished, self.progress = path, parts.layout, skip, finished, progress
        self.parts, self.commits = parts, commits
        self.bytes = 0
        self._lock = threading.Lock()

    def check(self, shard: int) -> tuple[CommitRecord | None, list[Problem]]:
        there = [part for part in self.parts.of(shard) if (shard, part) in self.commits]
        for part in there:
            file = commit_path(self.path, shard, part)
            try:
                found = load_commit(self.path, shard, part)
            except DataError as error:
                return None, [Problem(file, error.message, "a commit")]
            if names := set(found.files) ^ set(self.parts.files(shard, part)):
                other = f"another set of chunk files ({', '.join(sorted(names))})"
                return found, [Problem(file, other, "the layout's")]
        try:
            record = load_shard(self.path, shard, there)
        except DataError as error:
            return None, [Problem(commit_path(self.path, shard, there[-1]), error.message, "the same tokens")]
        problems: list[Problem] = []
        payloads: dict[str, NDArray[np.uint8]] = {}
        for array in self.layout.arrays.values():
            file, chunk = self.path / ARRAYS / array.file(shard), record.files.get(array.file(shard))
            if chunk is None or file in self.skip:
                continue
            data = np.fromfile(file, np.uint8)
            payload, trailer = data[: array.payload_bytes], data[array.payload_bytes :].tobytes()
            actual, expected_trailer = crc32c(payload), array.trailer(chunk.crc32c)
            if actual != chunk.crc32c:
                problems.append(Problem(file, f"crc32c {actual:08x}", f"{chunk.crc32c:08x}"))
            elif trailer != expected_trailer:
                problems.append(Problem(file, f"a trailer of {trailer.hex()}", expected_trailer.hex()))
            elif array.name in _TOKEN_NAMES:
                payloads[array.name] = payload
            with self._lock:
                self.bytes += len(data)
            self.progress.advance(len(data))
        return record, problems + list(self._count_problems(record, payloads))

    def _count_problems(self, record: CommitRecord, payloads: dict[str, NDArray[np.uint8]]) -> Iterator[Problem]:
        file = commit_path(self.path, record.shard)
        expected = self.parts.sequences(record.shard)
        # in an unfinished cache the data may end within this shard
        if record.sequences > expected or (self.finished and record.sequences != expected):
            yield Problem(file, f"{record.sequences} sequences", f"{expected}")
        rows = record.sequences * self.layout.ctx
        tokens = payloads.get("tokens")
        if tokens is not None:
            digest = hashlib.sha256(tokens[: rows * 4].tobytes()).hexdigest()
            if digest != record.tokens_sha256:
                yield Problem(file, f"a token slice with sha256 {record.tokens_sha256}", digest)
        flags = payloads.get("flags")
        if flags is not None:
            first = int(first_rows(flags[:rows], self.layout.ctx).sum())
            counted = int(text_rows(flags[:rows]).sum())
            if counted != record.tokens:
                yield Problem(file, f"{record.tokens} tokens", f"{counted}")
            for site, stats in record.stats.items():
                if not first - stats.nonfinite <= stats.first.n <= first:
                    yield Problem(file, f"{stats.first.n} rows of {site} at position 0", f"{first}")
        for site, stats in record.stats.items():
            if stats.all.n + stats.nonfinite != record.tokens or int(stats.position_n.sum()) != stats.all.n:
                yield Problem(file, f"{stats.all.n} + {stats.nonfinite} rows of {site} counted", f"{record.tokens}")


_TOKEN_NAMES = {array.name for array in TOKEN_ARRAYS}


def side_files(extra: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, sha256) of each file beside the arrays that a manifest's ``extra`` names."""
    documents = extra.get("documents")
    if isinstance(documents, Mapping) and "sha256" in documents:  # other programs may write other entries
        yield str(documents["file"]), str(documents["sha256"])
    if "tokenizer" in extra and "tokenizer_sha256" in extra:
        yield str(extra["tokenizer"]), str(extra["tokenizer_sha256"])


def _side_file_problems(path: Path, extra: Mapping[str, Any]) -> Iterator[Problem]:
    """Checks the files beside the arrays against the manifest: documents and tokenizer."""
    for name, expected in side_files(extra):
        file = path / name
        try:
            with file.open("rb") as data:
                digest = hashlib.file_digest(data, "sha256").hexdigest()
        except FileNotFoundError:
            yield Problem(file, "no file", f"sha256 {expected}", beside=True)
            continue
        if digest != expected:
            yield Problem(file, f"sha256 {digest}", f"{expected}", beside=True)


def _massive_problems(path: Path, parts: Parts, manifest: dict[str, Any]) -> Iterator[Problem]:
    """Checks the massive rows in the manifest against the rows; a manifest may lack them."""
    if (kept := manifest.get("massive")) is None:
        return
    without = {key: value for key, value in manifest.items() if key != "massive"}
    found = massive_entry(Cache(path, without, parts.layout, list(range(parts.layout.n_shards)), True, parts))
    for site in sorted(found.keys() | kept.keys()):
        if kept.get(site) != found.get(site):
            yield Problem(path / MANIFEST, f"massive rows of {site} that differ", "those of its rows")


def _manifest_problems(
    path: Path, parts: Parts, manifest: dict[str, Any], records: list[CommitRecord]
) -> Iterator[Problem]:
    file, layout = path / MANIFEST, parts.layout
    digest = hashlib.sha256()
    for record in records:
        for part in parts.of(record.shard):
            digest.update(commit_path(path, record.shard, part).read_bytes())
    facts = {
        "commits_sha256": digest.hexdigest(),
        "n_seq": layout.n_seq,
        "n_tokens": sum(record.tokens for record in records),
        "bytes": layout.bytes_on_disk(),
    }
    for key, expected in facts.items():
        if manifest.get(key) != expected:
            yield Problem(file, f"{key} {manifest.get(key)}", f"{expected}")
    for site in layout.sites:
        total = SiteStats.zeros(site.width, layout.ctx)
        for record in records:
            total = total + record.stats[site.name]
        if manifest["statistics"].get(site.name) != total.to_dict():
            yield Problem(file, f"statistics of {site.name} that differ", "the sum over the commits")
