"""What happens when the disk fails, or a file is cut, below a mapped file: one line and the exit code, not a crash.

Such a page cannot be read, and the system sends SIGBUS to whoever touches it. Python's own handlers run between
instructions, and this one never ends; so the handler is a C function, which does not return. It finds the file by the
address in the list of the process's mappings.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import sys
from pathlib import Path

from .errors import DataError, repair_command

_SIGINFO = 4  # SA_SIGINFO: the handler gets the address
_ADDRESS = 16  # its place in siginfo_t, on Linux with 64 bits
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_kept: list[object] = []  # a C function that is collected must not be called


class _Action(ctypes.Structure):
    """struct sigaction of glibc."""

    _fields_ = (
        ("handler", _HANDLER),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def name_failed_mappings(arguments: list[str]) -> None:
    """From now on a mapped page that cannot be read ends the process with an error that names the file.

    Args:
        arguments: the command line, which the error says to run again.
    """
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return
    again = shlex.join(["pipeline", *arguments])

    def failed(number: int, info: int, context: int) -> None:
        file = _file_at(ctypes.c_uint64.from_address(info + _ADDRESS).value)
        repair = again if file is None else repair_command(Path(file))
        then = again if file is None or file in shlex.split(repair) else repair
        what = f"{file or 'a mapped file'}: the disk failed, or the file was cut, while it was read"
        os.write(2, f"error: {what}\nnext: check the disk (dmesg), then {then}\n".encode())
        os._exit(DataError.exit_code)

    handler = _HANDLER(failed)
    action = _Action(handler, (ctypes.c_ubyte * 128)(), _SIGINFO, None)
    _kept.append((handler, action))
    ctypes.CDLL(None).sigaction(int(signal.SIGBUS), ctypes.byref(action), None)


def _file_at(address: int) -> str | None:
    """The file that is mapped at an address; None for other memory."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        place, _, _, _, _, *name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in place.split("-"))
        if first <= address < last and name and name[0].startswith("/"):
            return name[0].removesuffix(" (deleted)")
    return None
