"""A cache in a bucket, and the folder of this machine that everything reads it through.

A bucket holds a cache object by object as a folder holds it file by file: any Zarr reader opens it there. A *mirror* is
a folder with copies: of plans, commits and whatever else is not a chunk file always (:meth:`Mirror.pull`), of a chunk
file when it is first read (shared.cache.chunk_copies).

Writing needs no lock and no clock. A chunk file is only ever *created*: once it is in the bucket, nothing changes it,
and a second writer that computed other bits of the same rows takes what is there as its own. The commit is created too,
after every file that it names, from the bytes that are in the bucket. So whatever becomes of the others, a commit is
true, there is one, and everybody else's files of that shard serve whoever commits it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

import numpy as np

from ..errors import MIRROR, DamagedError, PipelineError, UsageError
from ..objects.address import Address, address_of, settled, spelled
from ..objects.room import DOWNLOAD, Room, folder_of, mirror_root
from ..objects.store import Entry, TakenError, connect
from ..untrusted import DOCUMENT_BYTES
from .chunk_copies import ChunkCopies
from .format import ARRAYS, COMMITS, MANIFEST, PLAN, TOKENIZER, shard_of_commit

THREADS = 16

FRESH_SECONDS = 10.0

_LISTED = f"{MIRROR}/objects.json"
_BESIDE = re.compile(r"\.plan(\.[1-9]\d*)?\.json\.copy|[A-Za-z0-9][A-Za-z0-9._-]*\.jsonl?")
_ARRAY = re.compile(r"[A-Za-z0-9_][^/\\]*")


class Mirror:
    """One cache in a bucket and its folder here; make it with :func:`mirror_of`.

    Attributes:
        address: of the cache.
        folder: the copies. Every function that reads a cache's documents and commits takes it as the cache's folder.
        objects: the bucket's side.
        chunks: its chunk files.
    """

    def __init__(self, address: Address, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.objects = connect(address)
        self._room = _rooms.setdefault(root := mirror_root(), Room(root))
        self.chunks = ChunkCopies(folder / ARRAYS, self.objects, self._room)
        self._guard = threading.RLock()
        self._pulled = 0.0
        self._noted: dict[str, str] = {}

    # --- what is not a chunk file -------------------------------------------------------------------------------------

    def pull(self, arrays: bool = False, anew: bool = False) -> None:
        """Makes the folder say what the bucket says, chunk files excepted.

        Args:
            arrays: the arrays' own metadata too.
            anew: also what seems to be here already.
        """
        with self._exclusive():
            known = self._known()
            listed, arrays_there = self._listed(arrays)
            if PLAN in known and known[PLAN] != (listed[PLAN].tag if PLAN in listed else None):
                self._forget()  # another cache has this address now
                known = {}
            known = {name: tag for name, tag in known.items() if name in listed or name.startswith(f"{ARRAYS}/")}
            lacking = [
                name for name, one in listed.items() if anew or known.get(name) != one.tag or not self._has(name, one)
            ]
            with ThreadPoolExecutor(THREADS) as pool:
                # the manifest last: whoever finds it finds what it names
                for part in ([name for name in lacking if name != MANIFEST], [n for n in lacking if n == MANIFEST]):
                    known |= dict(pool.map(self._copy, part))
                metadata = dict(one for one in pool.map(self._copied_metadata, arrays_there) if one is not None)
            if arrays:
                known = {name: tag for name, tag in known.items() if name in listed} | metadata
            for name in self._lost(listed):
                (self.folder / name).unlink(missing_ok=True)
            self._noted = {}
            self._keep(_LISTED, json.dumps(known).encode())
            self._pulled = time.monotonic()

    def pulled(self) -> Mirror:
        """The mirror, pulled a moment ago at most."""
        if time.monotonic() - self._pulled > FRESH_SECONDS or not self._pulled or not (self.folder / PLAN).exists():
            self.pull()
        return self

    def publish(self, name: str, data: bytes | None = None) -> bool:
        """Puts a document into the bucket and the folder: new, or in place of the one that was pulled.

        Args:
            data: its content; None: that of the file in the folder.

        Returns:
            whether the bucket holds this content; False: another writer's is there, and now in the folder too.
        """
        data = (self.folder / name).read_bytes() if data is None else data
        with self._guard:
            tag = self._known().get(name)
            try:
                parts: list[np.ndarray | bytes] = [data]
                entry = self.objects.replace(name, parts, tag) if tag else self.objects.create(name, parts)
            except TakenError:
                found, entry = self.objects.read(name, self._most(name))
                same = found.tobytes() == data
                data = found.tobytes()
            else:
                same = True
            with self._exclusive():
                self._keep(name, data)
                self._noted[name] = entry.tag
        return same

    def holds(self, name: str) -> bool:
        """Whether the bucket had a document of this name when it was looked at last."""
        return name in self._known()

    def pull_commit(self, file: str) -> bool:
        """Whether a commit is in the folder or, by now, in the bucket; then it is in the folder too."""
        name = f"{COMMITS}/{file}"
        if (self.folder / name).is_file():
            return True
        try:
            data, entry = self.objects.read(name, DOCUMENT_BYTES)
        except DamagedError:
            return False
        with self._exclusive():
            self._keep(name, data)
            self._noted[name] = entry.tag
        return True

    def check_conditions(self) -> None:
        """Raises PipelineError where the storage overwrites an object that was to be created: writers would too."""
        data = (self.folder / PLAN).read_bytes()
        try:
            self.objects.create(PLAN, [data])
        except TakenError:
            return
        raise PipelineError(
            f"the storage of {self.address} overwrites objects that exist: it does not know conditional writes "
            "(If-None-Match)",
            "write the cache to a folder, and copy it",
        )

    def foreign(self) -> list[str]:
        """What lies at the address beside a cache's own objects."""
        objects, folders = self.objects.inside()
        ours = {COMMITS, ARRAYS, TOKENIZER.partition("/")[0]}
        return sorted([*(name for name in objects if not _BESIDE.fullmatch(name)), *(set(folders) - ours)])

    # --- the folder ---------------------------------------------------------------------------------------------------

    def _listed(self, arrays: bool) -> tuple[dict[str, Entry], list[str]]:
        """The documents at the address with their tags, and the names of the arrays' metadata, if requested."""
        beside, folders = self.objects.inside()
        found = {name: one for name, one in beside.items() if _BESIDE.fullmatch(name)}
        # after the manifest, so that its commits are among them
        commits = self.objects.below(COMMITS) if COMMITS in folders else {}
        found |= {name: one for name, one in commits.items() if _is_commit(name)}
        if (folder := TOKENIZER.partition("/")[0]) in folders:
            found |= {name: one for name, one in self.objects.inside(folder)[0].items() if name == TOKENIZER}
        if not arrays or ARRAYS not in folders:
            return found, []
        names = [name for name in self.objects.inside(ARRAYS)[1] if _ARRAY.fullmatch(name) and ".." not in name]
        return found, [f"{ARRAYS}/zarr.json", *(f"{ARRAYS}/{name}/zarr.json" for name in names)]

    def _has(self, name: str, entry: Entry) -> bool:
        with suppress(OSError):
            return (self.folder / name).stat(follow_symlinks=False).st_size == entry.bytes
        return False

    def _copy(self, name: str) -> tuple[str, str]:
        data, entry = self.objects.read(name, self._most(name))
        self._keep(name, data)
        return name, entry.tag

    def _copied_metadata(self, name: str) -> tuple[str, str] | None:
        try:
            return self._copy(name)
        except DamagedError:
            (self.folder / name).unlink(missing_ok=True)
            return None

    def _most(self, name: str) -> int:
        """Bytes that a document may have: those of the documents of a corpus as many as chunk files may."""
        return self._room.limit if name.endswith(".jsonl") else DOCUMENT_BYTES

    def _lost(self, listed: dict[str, Entry]) -> list[str]:
        """Documents of the folder that vouch for something and are in the bucket no more."""
        with suppress(FileNotFoundError):
            commits = [f"{COMMITS}/{file.name}" for file in (self.folder / COMMITS).iterdir()]
            beside = [file.name for file in self.folder.iterdir() if file.name == MANIFEST or "plan." in file.name]
            return [name for name in (*commits, *beside) if name not in listed]
        return []

    def _forget(self) -> None:
        for name in (COMMITS, ARRAYS, "tokenizer"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for file in self.folder.iterdir():
            if file.is_file() and _BESIDE.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def _known(self) -> dict[str, str]:
        """Name → tag of the documents that were copied."""
        try:
            known = json.loads((self.folder / _LISTED).read_bytes())
        except (OSError, ValueError):
            known = {}
        return {**known, **self._noted}

    def _keep(self, name: str, data: bytes | np.ndarray) -> None:
        """Writes a file of the folder in one step. It is not synced: the bucket's own is what counts."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}{DOWNLOAD}")
        partial.write_bytes(data.tobytes() if isinstance(data, np.ndarray) else data)
        partial.replace(file)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Of all processes and threads, one at a time changes the documents of the folder."""
        with self._guard:
            (self.folder / MIRROR).mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / MIRROR / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not (self.folder / MIRROR / "address").is_file():
                    self._keep(f"{MIRROR}/address", f"{self.address}\n".encode())
                yield
            finally:
                os.close(descriptor)


_mirrors: dict[Path, Mirror] = {}
_rooms: dict[Path, Room] = {}
_making = threading.Lock()


def mirror_of(path: PurePath | str) -> Mirror | None:
    """The mirror of a cache's address, or of the folder of one; None for any other path.

    A folder is believed to be a mirror only where mirrors are kept: one from elsewhere cannot name a bucket to read.

    Raises:
        UsageError: an address that cannot be used.
    """
    address = address_of(path)
    if address is None:
        address = _noted(Path(path))
    if address is None:
        return None
    if not address.key:
        raise UsageError(f"{address} is a whole bucket, expected a cache in it", f"{address}/caches/NAME")
    folder = folder_of(address)
    with _making:
        if folder not in _mirrors:
            _mirrors[folder] = Mirror(address, folder)
        return _mirrors[folder]


def caches_below(path: PurePath) -> list[Path]:
    """The addresses of the caches directly below an address, as paths."""
    address = address_of(path)
    if address is None:
        return []
    objects = connect(address)
    return [
        (address / name).path for name in sorted(objects.inside()[1]) if f"{name}/{PLAN}" in objects.inside(name)[0]
    ]


def at_hand(path: PurePath | str) -> Path:
    """The folder in which a cache can be looked at: a mirror's, pulled, for an address; else the path itself."""
    mirror = mirror_of(path)
    return settled(Path(path)) if mirror is None else mirror.pulled().folder


def forget() -> None:
    """Opens every mirror anew when it is needed next, with the environment's settings as they are then."""
    with _making:
        _mirrors.clear()


def copies_room() -> int:
    """Bytes that the copies of chunk files on this machine may take. Raises UsageError as Room.limit."""
    root = mirror_root()
    return _rooms.setdefault(root, Room(root)).limit


def home(path: PurePath | str) -> Path:
    """The path of a cache for records and settings: the address, if it lies in a bucket."""
    mirror = mirror_of(path)
    return Path(path) if mirror is None else mirror.address.path


def shown(path: PurePath | str) -> str:
    """The path of a cache for people and records: the address, if it lies in a bucket."""
    return spelled(home(path))


def _noted(path: Path) -> Address | None:
    """The address that a mirror's folder notes."""
    root, path = mirror_root(), path.absolute()
    if not path.is_relative_to(root):
        return None
    with suppress(OSError, UsageError, UnicodeDecodeError):
        address = address_of((path / MIRROR / "address").read_text().strip())
        return address if address is not None and folder_of(address) == path else None
    return None


def _is_commit(name: str) -> bool:
    folder, _, file = name.partition("/")
    return folder == COMMITS and shard_of_commit(file) is not None
