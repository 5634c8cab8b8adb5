"""How the compiled loops of every package are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile to machine code that runs without the interpreter's lock; the code is kept on disk between runs."""
    kernel: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return cast(F, kernel)


def inlined(function: F) -> F:
    """A piece of a compiled loop, copied into it: a call would pass every array it takes anew for each entry."""
    kernel: Any = numba.njit(inline="always", error_model="numpy")(function)
    return cast(F, kernel)
