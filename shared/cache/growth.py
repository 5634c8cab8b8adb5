"""How a finished cache grows: more sequences or more sites, without rewriting a committed byte.

Every growth is a *generation* with its own plan: ``plan.1.json``, ``plan.2.json``, … beside ``plan.json``. Until a
growth is finished, the manifest is that of the previous generation, so a reader that opens the cache meanwhile sees the
previous generation. Afterwards the manifest lists the earlier generations; each can still be opened by its identity.

A shard has one or more *parts*: the commit of the generation that created it, and one more for each later generation
that added sites to it.

Why this is safe: files only ever appear. A growth adds plans, chunk files and commits under new names and replaces the
manifest last, by a rename. Array metadata may become longer before that, which no reader of this package relies on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..config.settings import identity
from ..errors import DamagedError, DataError, command, repair_command
from ..schemas import Manifest, Plan, checked
from .commits import commits_of
from .files import read_sealed
from .format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    HISTORY,
    MANIFEST,
    PLAN,
    TOKEN_ARRAYS,
    Layout,
    check_version,
    differences,
    plan_name,
)

GROWN_AFTER = "grown_after"
"""Key of a plan's config: sequence counts at which the cache grew within a shard; the rest of that shard is padding."""


@dataclass(frozen=True)
class Generation:
    """One state of a cache: the present one, or one before it grew.

    Attributes:
        identity: sha256 of its config.
        n_seq: sequences, including the padding after shards that were short when the cache grew.
        sites: their names.
    """

    identity: str
    n_seq: int
    sites: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"identity": self.identity, "n_seq": self.n_seq, "sites": list(self.sites)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        return cls(str(value["identity"]), int(value["n_seq"]), tuple(value["sites"]))


@dataclass(frozen=True)
class Parts:
    """Which commit of a shard covers which arrays, and how many sequences the shard holds.

    Attributes:
        layout: shapes of the last generation.
        generations: all generations, including the last.
    """

    layout: Layout
    generations: tuple[Generation, ...]

    def of(self, shard: int) -> dict[int, tuple[str, ...]]:
        """Part → its arrays. Part 0: its first arrays, including tokens; part g: those added by generation g."""
        return self._of_born[self._born(shard)]

    def owners(self, shard: int, site: str | None = None) -> dict[int, str]:
        """Part → identity of the generation that wrote it.

        Args:
            site: only the parts that hold this array.
        """
        born = self._born(shard)
        return {
            part: self.generations[max(part, born)].identity
            for part, arrays in self.of(shard).items()
            if site is None or site in arrays
        }

    def files(self, shard: int, part: int) -> dict[str, int]:
        """Path below ``acts.zarr`` → bytes of the chunk files of a part."""
        arrays = (self.layout.arrays[name] for name in self.of(shard)[part])
        return {array.file(shard): array.file_bytes for array in arrays}

    def missing_bytes(self, missing: Mapping[int, Collection[int]]) -> int:
        """Bytes of the chunk files of some parts: shard → parts. Each kind of part is added up once."""
        kinds: Counter[tuple[str, ...]] = Counter()
        for shard, parts in missing.items():
            arrays = self.of(shard)
            kinds.update(arrays[part] for part in parts)
        sizes = {name: array.file_bytes for name, array in self.layout.arrays.items()}
        return sum(count * sum(sizes[name] for name in names) for names, count in kinds.items())

    def missing(self, commits: Collection[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
        """Shard → its parts without a commit; complete shards are absent."""
        found = {
            shard: tuple(p for p in self.of(shard) if (shard, p) not in commits)
            for shard in range(self.layout.n_shards)
        }
        return {shard: parts for shard, parts in found.items() if parts}

    def committed(self, commits: Collection[tuple[int, int]]) -> list[int]:
        """The shards whose every part has a commit, in order.

        As `expected_files`, in the time that the commits take: a layout may claim any number of shards.
        """
        return [shard for shard in self._shards_in(commits) if all((shard, part) in commits for part in self.of(shard))]

    def expected_files(self, commits: Collection[tuple[int, int]]) -> dict[str, int]:
        """Chunk files named by the commits, with their bytes."""
        found: dict[str, int] = {}
        for shard in self._shards_in(commits):
            for part in self.of(shard):
                if (shard, part) in commits:
                    found |= self.files(shard, part)
        return found

    def _shards_in(self, commits: Collection[tuple[int, int]]) -> list[int]:
        return sorted({shard for shard, _ in commits if shard < self.layout.n_shards})

    def _born(self, shard: int) -> int:
        """The generation that added the shard."""
        return next(g for g, size in enumerate(self._shards) if shard < size)

    def sequences(self, shard: int) -> int:
        """Sequences in the shard; fewer than it has room for at the end of a generation."""
        size = self.layout.seqs_per_shard
        return next((n % size for n in self._ends if n // size == shard), len(self.layout.seqs_of(shard)))

    def units(self, unit_shards: int) -> Iterator[range]:
        """The shards in runs of at most ``unit_shards``; a run ends with a shard that is partly filled."""
        first = 0
        while first < self.layout.n_shards:
            stop = first + 1
            while (
                stop < min(first + unit_shards, self.layout.n_shards)
                and self.sequences(stop - 1) == self.layout.seqs_per_shard
            ):
                stop += 1
            yield range(first, stop)
            first = stop

    @property
    def padding(self) -> int:
        """Sequences of padding after shards that were short when the cache grew past them."""
        size = self.layout.seqs_per_shard
        return sum(-end % size for end in self._ends if end < self.layout.n_seq)

    @property
    def segments(self) -> tuple[int, ...]:
        """Lengths of the runs of data sequences between paddings: after each, data continue at the start of a shard."""
        size, before = self.layout.seqs_per_shard, 0
        found = []
        for end in self._ends:
            if end < self.layout.n_seq:
                found.append(end - before)
                before += -end % size
        return tuple(found)

    @property
    def last_longer(self) -> int:
        """The last generation that added sequences."""
        sizes = [0, *(one.n_seq for one in self.generations)]
        return max(g for g in range(len(self.generations)) if sizes[g + 1] > sizes[g])

    def _arrays(self, sites: Collection[str]) -> tuple[str, ...]:
        return tuple(name for site in self.layout.sites if site.name in sites for name in site.arrays)

    @cached_property
    def _of_born(self) -> tuple[dict[int, tuple[str, ...]], ...]:
        """The parts of the shards that each generation added, once for all of them: there may be millions."""
        return tuple(map(self._parts_of, range(len(self.generations))))

    def _parts_of(self, born: int) -> dict[int, tuple[str, ...]]:
        found = {0: (*(array.name for array in TOKEN_ARRAYS), *self._arrays(self.generations[born].sites))}
        for generation in range(born + 1, len(self.generations)):
            if added := set(self.generations[generation].sites) - set(self.generations[generation - 1].sites):
                found[generation] = self._arrays(added)
        return found

    @cached_property
    def _shards(self) -> tuple[int, ...]:
        """Shards of each generation."""
        return tuple(-(-one.n_seq // self.layout.seqs_per_shard) for one in self.generations)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """Where generations end within a shard, each once."""
        ends = dict.fromkeys(one.n_seq for one in self.generations)
        return tuple(n for n in ends if n % self.layout.seqs_per_shard)


@dataclass(frozen=True)
class Standing:
    """What a cache folder means for a config: a new cache, a resume, a growth, or an earlier finished generation.

    Attributes:
        plan: this generation's plan, as in ``file`` or to be written there.
        file: ``plan.json``, ``plan.1.json``, ….
        layout: shapes; of a finished generation, the final ones.
        generations: up to this one.
        latest: no later growth has started.
        finished: the manifest belongs to this generation or a later one.
        replaces: the folder holds a cache with a different config and no commit; it is removed.
    """

    plan: dict[str, Any]
    file: Path
    layout: Layout
    generations: tuple[Generation, ...]
    latest: bool = True
    finished: bool = False
    replaces: bool = False

    @property
    def parts(self) -> Parts:
        return Parts(self.layout, self.generations)


def plan_files(path: Path) -> list[Path]:
    """The plans of a cache, generation by generation."""
    found: list[Path] = []
    while (file := path / plan_name(len(found))).exists():
        found.append(file)
    return found


def read_plans(path: Path) -> list[dict[str, Any]]:
    """The plans of a cache, parsed.

    Raises:
        DataError: a plan is damaged or has another format version.
    """
    return [read_head(file) for file in plan_files(path)]


def read_head(file: Path) -> dict[str, Any]:
    """A plan or manifest: sealed, of this format version, of the right shape.

    Raises:
        DataError: it is not.
    """
    head = read_sealed(file, version=FORMAT_VERSION)
    check_version(file, head)
    head = checked(Manifest if file.name == MANIFEST else Plan, head, file)
    generation = re.fullmatch(r"\.?plan(?:\.(\d+))?\.json(?:\.copy)?", file.name)
    if generation and ("commits_sha256" in head or len(head.get(HISTORY, [])) != int(generation[1] or 0)):
        raise DamagedError(f"{file} is not the plan of generation {generation[1] or 0}", repair_command(file))
    try:
        sizes = [0, *(one.n_seq for one in generations_of(head))]
        layout = Layout.from_dict(head["layout"])
    except DataError as error:
        raise DataError(f"{file}: {error.message}", repair_command(file)) from None
    if sizes != sorted(sizes) or layout.n_seq != sizes[-1]:
        raise DataError(f"{file}: its generations have {sizes[1:]} sequences, expected growth", repair_command(file))
    return head


def copy_of(plan: Path) -> Path:
    """The second copy of a plan. Everything else follows from the plans and the source; a lost plan from nothing."""
    return plan.with_name(f".{plan.name}.copy")


def generations_of(head: Mapping[str, Any]) -> tuple[Generation, ...]:
    """All generations in a plan or manifest, its own last."""
    earlier = [Generation.from_dict(value) for value in head.get(HISTORY, [])]
    sites = tuple(site["name"] for site in head["layout"]["sites"])
    return (*earlier, Generation(str(head["identity"]), int(head["layout"]["n_seq"]), sites))


def stand(
    path: Path, layout: Layout, config: Mapping[str, Any], provenance: Mapping[str, Any], may_grow: Collection[str] = ()
) -> Standing:
    """What the folder means for this config and layout (which counts sequences of data). Writes nothing.

    A cache with a different config is replaced if it has no commit.

    Args:
        may_grow: dotted paths of the config that a growth may change.

    Raises:
        DataError: the folder holds a cache with a different config that cannot grow into this one.
            The error lists every difference.
    """
    plans = read_plans(path)
    if not plans:
        plan = _plan(layout, config, provenance, ())
        return Standing(plan, path / PLAN, layout, generations_of(plan))
    manifest = read_head(path / MANIFEST) if (path / MANIFEST).exists() else None
    done = -1 if manifest is None else len(manifest.get(HISTORY, []))
    for index in reversed(range(len(plans))):
        here = _standing(path, plans, index, manifest)
        if _same(here, layout, config):
            return here
    if is_empty(path):
        plan = _plan(layout, config, provenance, ())
        return Standing(plan, path / PLAN, layout, generations_of(plan), replaces=True)
    last = _standing(path, plans, len(plans) - 1, manifest)
    lines = _differences(last, layout, config)
    obstacle = _obstacle(last, layout, lines, may_grow)
    if obstacle is None and done < len(plans) - 1:
        obstacle = "is unfinished, and only a finished cache can grow"
    if obstacle is not None:
        raise DataError(
            f"{path} {obstacle}:\n" + "\n".join(f"  {line}" for line in lines),
            hint=f"{command('inspect', path)} shows its config; harvest under another name, or with that config",
        )
    return _grown(path, last, layout, config, provenance)


def standing_of(path: Path, plans: Sequence[dict[str, Any]], manifest: dict[str, Any] | None) -> Standing:
    """The latest generation of a cache, finished or not."""
    return _standing(path, plans, len(plans) - 1, manifest)


def is_empty(path: Path) -> bool:
    """Whether the cache has no commit: its harvest stopped or failed before the first shard."""
    return not ((path / MANIFEST).exists() or (path / plan_name(1)).exists() or commits_of(path))


def _plan(
    layout: Layout, config: Mapping[str, Any], provenance: Mapping[str, Any], history: Sequence[Generation]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "identity": identity(config),
        "config": dict(config),
        "layout": layout.to_dict(),
        "provenance": dict(provenance),
    }
    return found | ({HISTORY: [one.to_dict() for one in history]} if history else {})


def _standing(path: Path, plans: Sequence[dict[str, Any]], index: int, manifest: dict[str, Any] | None) -> Standing:
    plan = plans[index]
    done = -1 if manifest is None else len(manifest.get(HISTORY, []))
    generations = generations_of(plan)
    if index < len(plans) - 1:
        generations = (*generations[:-1], generations_of(plans[index + 1])[index])
    elif manifest is not None and done == index:
        generations = generations_of(manifest)
    elif index and plan["layout"]["n_seq"] == plans[index - 1]["layout"]["n_seq"]:
        # further sites: of as many sequences as there are, which may be fewer than were planned
        generations = (*generations[:-1], replace(generations[-1], n_seq=generations[-2].n_seq))
    layout = replace(Layout.from_dict(plan["layout"]), n_seq=generations[-1].n_seq)
    return Standing(plan, path / plan_name(index), layout, generations, index == len(plans) - 1, done >= index)


def _wanted(here: Standing, layout: Layout, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and layout in the form of this generation's plan."""
    spelled = dict(config)
    if GROWN_AFTER in here.plan["config"]:
        spelled[GROWN_AFTER] = here.plan["config"][GROWN_AFTER]
    shapes = layout.to_dict() | {"n_seq": layout.n_seq + here.parts.padding}
    known = [site["name"] for site in here.plan["layout"]["sites"]]
    if sorted(known) == sorted(site["name"] for site in shapes["sites"]):
        shapes["sites"] = sorted(shapes["sites"], key=lambda site: known.index(site["name"]))
    return spelled, shapes


def _differences(here: Standing, layout: Layout, config: Mapping[str, Any]) -> list[str]:
    spelled, shapes = _wanted(here, layout, config)
    return differences(here.plan["config"], spelled) + differences(here.plan["layout"], shapes, "layout")


def _same(here: Standing, layout: Layout, config: Mapping[str, Any]) -> bool:
    return not _differences(here, layout, config)


def _obstacle(last: Standing, layout: Layout, lines: Sequence[str], may_grow: Collection[str]) -> str | None:
    """Why the cache cannot grow into this layout; None where it can."""
    spelled = ("layout.n_seq:", "layout.sites:", "layout.sites[", *may_grow)
    if not all(line.startswith(tuple(spelled)) for line in lines):
        return "was made with a different config"
    kept = {site.name: site for site in layout.sites}
    if any(kept.get(site.name) != site for site in last.layout.sites):
        return "holds sites that this config lacks or stores differently"
    planned, wanted = int(last.plan["layout"]["n_seq"]), layout.n_seq + last.parts.padding
    if wanted < planned:
        return "holds more sequences than this config requires"
    if wanted > planned and last.layout.n_seq < planned:
        return f"holds its whole dataset already ({last.layout.n_seq:,} sequences), so it cannot grow"
    if wanted == planned and len(layout.sites) == len(last.layout.sites):
        return "was made with a different config"
    return None


def _grown(
    path: Path, last: Standing, layout: Layout, config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Standing:
    """The plan of a growth: the old sites and then the new ones; new sequences begin with a new shard."""
    size = layout.seqs_per_shard
    old = {site.name for site in last.layout.sites}
    sites = (*last.layout.sites, *(site for site in layout.sites if site.name not in old))
    planned, wanted = int(last.plan["layout"]["n_seq"]), layout.n_seq + last.parts.padding
    after = list(last.plan["config"].get(GROWN_AFTER, []))
    if wanted > planned and last.layout.n_seq % size:
        wanted += -last.layout.n_seq % size
        after.append(last.layout.n_seq)
    spelled = dict(config) | ({GROWN_AFTER: after} if after else {})
    plan = _plan(replace(layout, n_seq=wanted, sites=sites), spelled, provenance, last.generations)
    n_seq = wanted if wanted > planned else last.layout.n_seq
    generation = Generation(plan["identity"], n_seq, tuple(site.name for site in sites))
    file = path / plan_name(len(last.generations))
    return Standing(plan, file, replace(layout, n_seq=n_seq, sites=sites), (*last.generations, generation))
