"""Triton's interpreter, quicker: it replaces the functions of `triton.language` once per kernel.

As published it looks through every member of the module again for each call of a device function, two fifths of its
time here. What is replaced stays so until the kernel ends, so the later looks find nothing to do. It also builds a
table of all dtypes for each value; here each dtype is looked up once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def replace_language_once() -> None:
    """Patch the interpreter in this process. It keeps its own way where its internals have other names."""
    from triton.runtime import interpreter

    replace = getattr(interpreter, "_patch_lang", None)
    scope_of = getattr(interpreter, "_LangPatchScope", None)
    if replace is None or scope_of is None or getattr(replace, "once", False):
        return
    replaced: set[int] = set()
    modules = (interpreter.tl, interpreter.tl.core)
    uses: dict[str, set[int]] = {}  # by the name of a kernel's module

    def once(fn: Any) -> Any:
        seen = uses.get(fn.__module__)
        if seen is None:
            members = fn.__globals__.values()
            seen = {id(value) for value in members if inspect.ismodule(value) and value in modules}
            uses[fn.__module__] = seen
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
    interpreter._get_np_dtype = _by_name(interpreter._get_np_dtype)


def _by_name(look_up: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of a Triton type, called once for each name of one."""
    found: dict[str, Any] = {}

    def known(kind: Any) -> Any:
        if kind.name not in found:
            found[kind.name] = look_up(kind)
        return found[kind.name]

    return known
