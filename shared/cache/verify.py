"""Reads every byte of a cache and settles what is true of it, from the payloads up.

Whoever wrote a record, it is believed only as far as something independent agrees: a sealed file with its own sha256,
a payload with the CRC-32C in its commit, a commit's counts and statistics with those computed again from the payload,
the manifest with the sum over the commits, array metadata with the layout, a plan with its copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.settings import identity
from ..console import Console, count
from ..errors import DataError, VersionError, command
from ..objects.address import settled
from .arrays import metadata_problems
from .commits import CommitRecord, commit_path, commits_of
from .files import inside, read_file, read_sealed
from .format import HISTORY, MANIFEST, PLAN, Layout, plan_name
from .growth import Parts, copy_of, generations_of, read_head, standing_of
from .mirror import mirror_of, shown
from .problems import Problem
from .reader import Cache, massive_entry
from .shard_check import Checked, ShardChecker
from .stats import SiteStats

READERS = 4

MOST_LISTED = 1000
"""Missing commits that are listed one by one."""


@dataclass(frozen=True)
class VerifyReport:
    """Outcome of :func:`verify_cache`.

    Attributes:
        path: the cache.
        complete: the cache is finished, and every shard has its commit.
        problems: all damage found; being unfinished is not a problem.
        shards: committed shards that were read.
        bytes: bytes of chunk files that were read.
        notes: what was not checked, and why.
    """

    path: Path
    complete: bool
    problems: tuple[Problem, ...]
    shards: int
    bytes: int
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def lasting(self) -> bool:
        """Whether some of it cannot be repaired."""
        return any(problem.lasting for problem in self.problems)

    @property
    def hint(self) -> str | None:
        """The command to run next."""
        if self.ok:
            return None
        if all(problem.lasting for problem in self.problems):
            return self.problems[0].advice or command("inspect", shown(self.path))
        if mirror_of(self.path) is not None:
            again = command("harvest", "-c", shown(self.path))
            return (
                f"delete what is named from the bucket, the commit of each chunk file too; then {again} writes it again"
            )
        return command("verify", self.path, "--repair")

    def to_dict(self) -> dict[str, Any]:
        problems = [{"path": str(p.path), "found": p.found, "expected": p.expected} for p in self.problems]
        return {
            "path": shown(self.path),
            "ok": self.ok,
            "complete": self.complete,
            "shards": self.shards,
            "bytes": self.bytes,
            "problems": problems,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        state = "complete" if self.complete else "not finished"
        lines = [
            f"{shown(self.path)}: {count(self.shards, 'shard')}, {self.bytes:,} bytes read, {state}",
            *map(str, self.problems),
            *(f"not checked: {note}" for note in self.notes),
        ]
        return "\n".join([*lines, "ok" if self.ok else count(len(self.problems), "problem")])


def verify_cache(path: Path | str, console: Console | None = None) -> VerifyReport:
    """Checks every file of a cache. Where nothing else is wrong, massive rows are found again and compared too.

    Raises:
        DataError: no cache at ``path``, or its format version is unknown.
    """
    mirror = mirror_of(path)
    if mirror is not None:
        mirror.pull(arrays=True, anew=True)
    path = settled(Path(path)) if mirror is None else mirror.folder
    if not any((path / name).exists() for name in (PLAN, MANIFEST, copy_of(path / PLAN).name)):
        raise DataError(f"no cache at {shown(path)}", command("status"))
    problems: list[Problem] = []
    plans = _plans(path, problems)
    manifest = _manifest(path, plans, problems)
    if not plans:
        return VerifyReport(path, False, tuple(problems), 0, 0)
    here = standing_of(path, plans, manifest)
    parts, commits = here.parts, commits_of(path)
    done = None if manifest is None else Parts(Layout.from_dict(manifest["layout"]), generations_of(manifest))
    for file, head in ((path / plan_name(n), plan) for n, plan in enumerate(plans)):
        if head["identity"] != identity(head["config"]):
            advice = "the config was changed by hand: restore it, or harvest under another name"
            expected = identity(head["config"])
            problems.append(Problem(file, f"identity {head['identity']}", expected, lasting=True, advice=advice))
    if done is not None:
        problems += _lacking(path, done, commits)
    shards = sorted({shard for shard, _ in commits if shard < parts.layout.n_shards})
    total = sum(parts.expected_files(commits).values())
    with (console or Console(quiet=True)).progress(total, "B", "verify") as progress:
        checker = ShardChecker(path, parts, commits, here.finished, progress.advance)
        with ThreadPoolExecutor(READERS) as pool:
            found = dict(zip(shards, pool.map(checker.check, shards), strict=True))
    problems += [problem for one in found.values() for problem in one.problems]
    # a writer that was stopped while it created the arrays writes the rest on its next start
    if shards or manifest is not None:
        shapes = _shapes(here.layout, parts, done, found)
        problems += [Problem(*item[:3], write=item[3]) for item in metadata_problems(path, shapes)]
    complete = done is not None and here.finished and not any(problem.missing for problem in problems)
    if done is not None and manifest is not None:
        if complete and not any(one.problems for one in found.values()):
            problems += _manifest_problems(path, done, manifest, [_merged(found[n], done) for n in shards])
        problems += _side_file_problems(path, manifest.get("extra", {}))
        if not problems:
            problems += _massive_problems(path, done, manifest)
    return VerifyReport(path, complete, tuple(problems), len(shards), checker.bytes)


def _plans(path: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """The plans, generation by generation, each from whichever copy is sound; none from a lost one on."""
    plans: list[dict[str, Any]] = []
    while (file := path / plan_name(len(plans))).exists() or copy_of(file).exists():
        sound: dict[Path, dict[str, Any]] = {}
        damaged: dict[Path, str] = {}
        for one in (file, copy_of(file)):
            try:
                sound[one] = read_head(one)
            except VersionError:
                raise
            except DataError as error:
                damaged[one] = error.message
        if len({str(plan) for plan in sound.values()}) > 1:
            own = _identities(path)
            damaged |= {one: "the plan of another cache" for one, plan in sound.items() if plan["identity"] not in own}
            sound = {one: plan for one, plan in sound.items() if one not in damaged}
        if not sound or len({str(plan) for plan in sound.values()}) > 1:
            found = "two plans that differ" if sound else damaged[file]
            advice = f"write {file} again: run the harvest with the settings of this cache under another name, copy it"
            problems.append(Problem(file, found, "a plan", lasting=True, advice=advice))
            return []
        good = next(iter(sound))
        problems += [Problem(one, found, "the plan", write=read_file(good)) for one, found in damaged.items()]
        plans.append(sound[good])
    return plans


def _identities(path: Path) -> set[str]:
    """The identities that the sound commits name."""
    found = set()
    for shard, part in commits_of(path):
        with suppress(DataError):
            found.add(str(read_sealed(commit_path(path, shard, part)).get("identity")))
    return found


def _manifest(path: Path, plans: Sequence[dict[str, Any]], problems: list[Problem]) -> dict[str, Any] | None:
    """The manifest if it is sound and belongs to one of the plans."""
    file = path / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = read_head(file)
    except VersionError:
        raise
    except DataError as error:
        problems.append(Problem(file, error.message, "a manifest", drop=(file,)))
        return None
    if not plans:
        return None
    generation = len(manifest.get(HISTORY, []))
    if generation >= len(plans):
        problems.append(Problem(file, f"generation {generation}", f"one of {len(plans)} plans", drop=(file,)))
        return None
    plan = plans[generation]
    for key in ("identity", "config", "provenance", HISTORY):
        if manifest.get(key) != plan.get(key):
            problems.append(Problem(file, f"a {key} that differs", f"that of {plan_name(generation)}", drop=(file,)))
            return None
    there, planned = dict(manifest["layout"]), dict(plan["layout"])
    if there | {"n_seq": 0} != planned | {"n_seq": 0} or there["n_seq"] > planned["n_seq"]:
        problems.append(Problem(file, "another layout", f"that of {plan_name(generation)}", drop=(file,)))
        return None
    return manifest


def _lacking(path: Path, done: Parts, commits: set[tuple[int, int]]) -> Iterator[Problem]:
    """Commits that a finished generation must have."""
    if done.layout.n_shards > len({shard for shard, _ in commits}) + MOST_LISTED:
        found = f"{len(commits):,} commits"
        yield Problem(path / MANIFEST, found, f"{done.layout.n_shards:,} shards", missing=True)
        return
    for shard, lacking in done.missing(commits).items():
        for part in lacking:
            yield Problem(commit_path(path, shard, part), "no commit", "one for every shard", missing=True)


def _shapes(layout: Layout, parts: Parts, done: Parts | None, found: Mapping[int, Checked]) -> list[Layout]:
    """The layouts that array metadata may follow: the finished generation's, and those on the way to the next."""
    shapes = [] if done is None else [done.layout]
    if done is not None and done.layout == layout:
        return shapes
    shapes.append(layout)
    for generation in parts.generations[:-1]:
        kept = tuple(site for site in layout.sites if site.name in generation.sites)
        shapes.append(replace(layout, n_seq=generation.n_seq, sites=kept))
    last = max(found, default=None)
    record = None if last is None else found[last].records.get(0)
    if last is not None and record is not None:  # the data ended here, and the harvest stopped before the manifest
        shapes.append(replace(layout, n_seq=last * layout.seqs_per_shard + record.sequences))
    return shapes


def _merged(one: Checked, done: Parts) -> CommitRecord:
    """All parts of a shard that belong to the finished generation, as one record."""
    shard = one.records[0].shard
    whole = one.records[0]
    for part in list(done.of(shard))[1:]:
        record = one.records[part]
        whole = replace(whole, files={**whole.files, **record.files}, stats={**whole.stats, **record.stats})
    return whole


def side_files(extra: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, sha256) of each file beside the arrays that a manifest's ``extra`` names."""
    documents = extra.get("documents")
    if isinstance(documents, Mapping) and "sha256" in documents:  # other programs may write other entries
        yield str(documents.get("file")), str(documents["sha256"])
    if "tokenizer" in extra and "tokenizer_sha256" in extra:
        yield str(extra["tokenizer"]), str(extra["tokenizer_sha256"])


def _side_file_problems(path: Path, extra: Mapping[str, Any]) -> Iterator[Problem]:
    """Checks the files beside the arrays against the manifest: documents and tokenizer."""
    for name, expected in side_files(extra):
        # documents are written by the pass over the dataset that ends with the manifest
        again = (path / MANIFEST,) if name != extra.get("tokenizer") else ()
        try:
            file = inside(path, name)
        except DataError as error:
            yield Problem(path / MANIFEST, error.message, "a file in this folder", drop=(path / MANIFEST,))
            continue
        try:
            digest = hashlib.sha256(read_file(file)).hexdigest()
        except DataError as error:
            yield Problem(file, error.message, f"sha256 {expected}", drop=(file, *again), beside=True)
            continue
        if digest != expected:
            yield Problem(file, f"sha256 {digest}", expected, drop=(file, *again), beside=True)


def _massive_problems(path: Path, parts: Parts, manifest: dict[str, Any]) -> Iterator[Problem]:
    """Checks the massive rows in the manifest against the rows; a manifest may lack them."""
    if (kept := manifest.get("massive")) is None:
        return
    without = {key: value for key, value in manifest.items() if key != "massive"}
    shards = list(range(parts.layout.n_shards))
    found = massive_entry(
        Cache(path, without, parts.layout, shards, True, parts, checksums=False, mirror=mirror_of(path))
    )
    file = path / MANIFEST
    for site in sorted(found.keys() | kept.keys()):
        if kept.get(site) != found.get(site):
            yield Problem(file, f"massive rows of {site} that differ", "those of its rows", drop=(file,))


def _manifest_problems(
    path: Path, parts: Parts, manifest: dict[str, Any], records: list[CommitRecord]
) -> Iterator[Problem]:
    file, layout = path / MANIFEST, parts.layout
    digest = hashlib.sha256()
    records = [record for record in records if record.shard < layout.n_shards]
    for record in records:
        for part in parts.of(record.shard):
            digest.update(read_file(commit_path(path, record.shard, part)))
    facts = {
        "commits_sha256": digest.hexdigest(),
        "n_seq": layout.n_seq,
        "n_tokens": sum(record.tokens for record in records),
        "bytes": layout.bytes_on_disk(),
    }
    for key, expected in facts.items():
        if manifest.get(key) != expected:
            yield Problem(file, f"{key} {manifest.get(key)}", f"{expected}", drop=(file,))
    for site in layout.sites:
        total = SiteStats.zeros(site.width, layout.ctx)
        for record in records:
            total = total + record.stats[site.name]
        if manifest["statistics"].get(site.name) != total.to_dict():
            yield Problem(file, f"statistics of {site.name} that differ", "the sum over the commits", drop=(file,))
