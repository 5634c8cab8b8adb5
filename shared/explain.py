"""What the operating system and the libraries raise, as a message with the file and the next step.

The front door calls this for whatever is no PipelineError. Readers of files that could be damaged raise DataError
themselves; what is translated here can strike anywhere: a full disk, a bad sector, a limit of the system.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError, PipelineError

_SYSTEM: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EIO: ("the disk reports an input/output error", "check the disk (dmesg), or move the folder to another one"),
    errno.EROFS: ("the filesystem is read-only", "choose a folder on another one"),
    errno.EACCES: ("permission denied", "change the permissions, or choose another folder"),
    errno.EPERM: ("permission denied", "change the permissions, or choose another folder"),
    errno.EMFILE: ("too many files are open in this process", "raise the limit: ulimit -n 65536"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.ENOLCK: ("the filesystem has no locks", "put caches and runs on a local disk, or mount it with locks"),
    errno.ENAMETOOLONG: ("a name is too long for the filesystem", "choose a shorter name"),
    errno.ENOMEM: ("not enough memory", "close other programs"),
    errno.ELOOP: ("too many symbolic links", "give the real path"),
    errno.ENOENT: ("no such file or folder", "check the path"),
    errno.ENOTDIR: ("a part of the path is not a folder", "check the path"),
    errno.EISDIR: ("found a folder, expected a file", "check the path"),
    errno.EEXIST: ("it exists already", "choose another name"),
    errno.ENOTEMPTY: ("the folder is not empty", "choose another name"),
    errno.ESTALE: ("the network filesystem lost the file", "mount it again"),
    errno.EFBIG: ("the file would be larger than the filesystem allows", "choose a folder on another one"),
    errno.ENODEV: ("the filesystem does not support this", "choose a folder on a local disk"),
    errno.ETXTBSY: ("another program is using the file", "wait until it ends"),
}
_COMPRESSED = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


def explained(error: BaseException, again: str) -> PipelineError | None:
    """The error in our words; None for one that is a fault of this program.

    Args:
        again: the command that was run.
    """
    place = _place(error)
    then = f", then {again}"
    cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch's own, of a CPU
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or cpu:
        return PipelineError(
            f"not enough memory: {str(error).splitlines()[0] if str(error) else 'the system gave no more'}",
            "lower train.data.memory_gb, train.data.batch_size or harvest.batch_tokens" + then,
        )
    if isinstance(error, _COMPRESSED):
        return DataError(f"{place}a compressed file is damaged or cut short: {error}", "restore the file" + then)
    if isinstance(error, UnicodeError):
        return DataError(f"{place}not UTF-8 text: {error}", "convert the file to UTF-8" + then)
    if isinstance(error, RecursionError):
        return DataError(f"{place}nested too deep to be read", "restore the file that the command reads" + then)
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{place}not valid JSON: {error}", "restore the file" + then)
    if isinstance(error, OSError) and error.errno is not None:
        what, step = _SYSTEM.get(error.errno, (str(error.strerror).lower(), "see the system's log (dmesg)"))
        return PipelineError(f"{place}{what}", step + then)
    library = type(error).__module__.partition(".")[0]
    if library in ("pyarrow", "safetensors", "safetensors_rust") or type(error).__name__ == "SafetensorError":
        return DataError(f"{place}the file cannot be read: {error}", "restore the file" + then)
    return None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives the file's name to an error of the system that has none: a write knows only a descriptor."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f"{name}: " if isinstance(name, str) and name else ""
