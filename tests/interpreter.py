"""Triton's interpreter, quicker: it replaces the functions of `triton.language` once per kernel.

As published it looks through every member of the module again for each call of a device function, two fifths of its
time here. What is replaced stays so until the kernel ends, so the later looks find nothing to do.
"""

from __future__ import annotations

import inspect
from typing import Any


def replace_language_once() -> None:
    """Patch the interpreter in this process. It keeps its own way where its internals have other names."""
    from triton.runtime import interpreter

    replace = getattr(interpreter, "_patch_lang", None)
    scope_of = getattr(interpreter, "_LangPatchScope", None)
    if replace is None or scope_of is None or getattr(replace, "once", False):
        return
    replaced: set[int] = set()

    def once(fn: Any) -> Any:
        modules = (interpreter.tl, interpreter.tl.core)
        seen = {id(value) for value in fn.__globals__.values() if inspect.ismodule(value) and value in modules}
        if seen and seen <= replaced:
            return scope_of()
        outermost = not replaced  # a kernel; the functions that it calls come while it runs
        scope = replace(fn)
        replaced.update(seen)
        if outermost:
            restore = scope.restore

            def ended() -> None:
                replaced.clear()
                restore()

            scope.restore = ended
        return scope

    once.once = True  # type: ignore[attr-defined]
    interpreter._patch_lang = once
