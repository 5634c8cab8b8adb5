"""What a writer does in place of renames and locks where the cache lies in a bucket (shared.cache.mirror)."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DataError
from .arrays import metadata_files
from .commits import CommitRecord, load_commit
from .files import sealed_bytes
from .format import ARRAYS, COMMITS, TOKENIZER, Layout, commit_name
from .growth import Standing, copy_of
from .mirror import Mirror


def begin(mirror: Mirror, standing: Standing) -> bool:
    """Puts the plan into the bucket, unless it is there. True: another writer's was put there meanwhile.

    Raises:
        DataError: the address holds the plan of a cache with a different config, without shards: somebody may be about
            to write them.
        PipelineError: the storage knows no conditional writes.
    """
    if standing.replaces:
        raise DataError(
            f"{mirror.address} was begun with a different config, and holds no shard yet",
            "choose another cache name, or delete it with the storage's own tool",
        )
    if not standing.file.exists() and not mirror.publish(standing.file.name, sealed_bytes(standing.plan)):
        return True
    copy = copy_of(standing.file)
    if not copy.exists():
        publish(mirror, copy.name, standing.file.read_bytes())
    if not (mirror.folder / COMMITS).exists():  # of a new cache, before anything depends on it
        mirror.check_conditions()
    return False


def publish(mirror: Mirror, name: str, data: bytes | None = None) -> None:
    """As Mirror.publish. Raises DataError where another writer put something else there."""
    if not mirror.publish(name, data):
        raise DataError(
            f"another writer put a different {name} into {mirror.address}",
            "run the same harvest again: it continues from what is there",
        )


def publish_new(mirror: Mirror, layout: Layout) -> None:
    """Puts the arrays' metadata and the tokenizer into the bucket, those that it lacks."""
    for name in [f"{ARRAYS}/{file}" for file in metadata_files(layout)]:
        if not mirror.holds(name):
            mirror.publish(name)  # or takes what another writer put there
    if (mirror.folder / TOKENIZER).is_file():
        publish(mirror, TOKENIZER)


def publish_final(mirror: Mirror, layout: Layout) -> None:
    """Puts the arrays' metadata of a finished cache into the bucket; it follows from the layout, whoever writes it."""
    for file, content in metadata_files(layout).items():
        name = f"{ARRAYS}/{file}"
        if not mirror.publish(name, content):
            publish(mirror, name, content)


def commit(mirror: Mirror, part: int, record: CommitRecord) -> CommitRecord:
    """Commits a shard whose chunk files are in the bucket. Returns its commit: another writer's, if that came first.

    Raises:
        DataError: that one names other files than those that are there.
    """
    name = f"{COMMITS}/{commit_name(record.shard, part)}"
    if mirror.publish(name, sealed_bytes(record.to_dict())):
        return record
    theirs = load_commit(mirror.folder, record.shard, part, record.identity)
    if dict(theirs.files) != dict(record.files):
        raise DataError(
            f"{mirror.address / name} names other chunk files than those in the bucket",
            f"pipeline verify {mirror.address}",
        )
    return theirs


def check_objects(mirror: Mirror, expected: Mapping[str, int]) -> None:
    """Raises a DataError that names the first chunk file of the wrong size in the bucket, and how many others."""
    found = mirror.chunks.sizes()
    wrong = [name for name, n_bytes in expected.items() if found.get(name) != n_bytes]
    if wrong:
        size = "no object" if wrong[0] not in found else f"{found[wrong[0]]:,} bytes"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DataError(
            f"{mirror.address / ARRAYS / wrong[0]}: found {size}, expected {expected[wrong[0]]:,} bytes{more}",
            f"pipeline verify {mirror.address}",
        )
