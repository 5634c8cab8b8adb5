"""Settings: read, merged, checked once at the boundary, and frozen.

Config classes are frozen dataclasses beside the code they configure; their defaults are the built-in defaults. Order of
precedence: defaults < settings files in order < variant < `--set` < dedicated flags.
"""

from __future__ import annotations

import dataclasses
import decimal
import enum
import functools
import hashlib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError, UsageError
from ..objects.address import spelled
from .registry import TAGS, Keyed, did_you_mean, tag_value
from .yaml import dump_yaml, load_yaml, parse_yaml

__all__ = [
    "apply_set",
    "dump_yaml",
    "find_settings",
    "identity",
    "key_paths",
    "load_yaml",
    "merge",
    "presets",
    "to_dict",
    "validate",
]

T = TypeVar("T")
PRESETS = Path(__file__).parent.parent / "presets"
LIST_KEYS = "pipeline config show   (lists the keys)"


# --- the shape of a config type -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shape:
    """What an annotation allows: config classes (told apart by a tag if there are several) or a mapping of values."""

    classes: tuple[type, ...] = ()
    value: Any = None  # annotation of the values of a dict[str, value]
    keyed: str | None = None  # the tag that a key of that dict stands for

    def pick(self, node: Any, key: str | None = None) -> type | None:
        """The config class of a mapping, by its tag; None for an unknown tag."""
        if len(self.classes) <= 1:
            return self.classes[0] if self.classes else None
        for tag in TAGS:
            wanted = node.get(tag, key) if isinstance(node, Mapping) else key
            for cls in self.classes:
                if wanted is not None and tag_value(cls, tag) == wanted:
                    return cls
        return None


def shape_of(annotation: Any) -> Shape:
    """Look through Annotated and unions at the config classes or the mapping below."""
    marks: list[Keyed] = []
    while get_origin(annotation) is Annotated:
        annotation, *extra = get_args(annotation)
        marks += [mark for mark in extra if isinstance(mark, Keyed)]
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = [shape_of(part) for part in get_args(annotation)]
        value = next((part.value for part in parts if part.value is not None), None)
        return Shape(
            tuple(cls for part in parts for cls in part.classes), value, next((p.keyed for p in parts if p.keyed), None)
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Shape(value=get_args(annotation)[1], keyed=marks[0].tag if marks else None)
    if origin is tuple and get_args(annotation)[1:] == (...,):
        return Shape(shape_of(get_args(annotation)[0]).classes)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Shape((annotation,))
    return Shape()


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Annotation of every field that settings may set."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def config_classes(cls: type, seen: dict[type, None] | None = None) -> list[type]:
    """`cls` and every config class below it, in depth-first order."""
    seen = {} if seen is None else seen
    if cls not in seen:
        seen[cls] = None
        for annotation in field_types(cls).values():
            shape = shape_of(annotation)
            while shape.value is not None:
                shape = shape_of(shape.value)
            for inner in shape.classes:
                config_classes(inner, seen)
    return list(seen)


# --- merging --------------------------------------------------------------------------------------------------------


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any], like: Any = None) -> dict[str, Any]:
    """`overlay` on top of `base`, as a new dict: mappings deep, everything else replaced.

    Args:
        like: the config class the settings belong to. With it, a mapping whose tag (`architecture`, `kind`) changes
            keeps the keys that the new tag knows and drops the rest, and `null` removes an entry of a mapping of
            penalties or reports, or in place of such a mapping all of them. Without it, a mapping whose tag changes is
            replaced whole.
    """
    return _merge(base, overlay, shape_of(like) if like is not None else None, None)


def _merge(base: Mapping[str, Any], overlay: Mapping[str, Any], shape: Shape | None, key: str | None) -> dict[str, Any]:
    kept = dict(base)
    cls = shape.pick({**base, **overlay}, key) if shape else None
    if any(tag in overlay and tag in base and overlay[tag] != base[tag] for tag in TAGS):
        known = field_types(cls) if cls else {}
        kept = {name: value for name, value in base.items() if name in known}
    for name, value in overlay.items():
        if shape is None:
            inner = None
        elif shape.value is not None:
            inner = shape_of(shape.value)
        else:
            inner = shape_of(field_types(cls).get(name)) if cls else None
        if value is None and shape is not None and shape.value is not None:
            kept.pop(name, None)
        elif value is None and inner is not None and inner.value is not None:
            kept[name] = {}
        elif isinstance(value, Mapping) and isinstance(kept.get(name), Mapping):
            kept[name] = _merge(kept[name], value, inner, name if shape and shape.keyed else None)
        else:
            kept[name] = value
    return kept


def apply_set(settings: Mapping[str, Any], assignments: Sequence[str], like: Any = None) -> dict[str, Any]:
    """`a.b=value` on top of settings, one after the other; values are YAML. Raises UsageError for a malformed one."""
    result = dict(settings)
    for text in assignments:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise UsageError(f"--set {text!r}: expected KEY.KEY=VALUE, for example train.coder.k=48", LIST_KEYS)
        node: Any = result
        for depth, key in enumerate(keys[:-1]):
            node = node.get(key, {})
            if not isinstance(node, Mapping) and node is not None:
                here = ".".join(keys[: depth + 1])
                found = f"{here} is {_describe(node)}, so it has no keys"
                raise UsageError(f"--set {text!r}: {found}; give {here} as a whole", LIST_KEYS)
            node = node or {}
        overlay: Any = parse_yaml(value, f"--set {path}")
        for key in reversed(keys):
            overlay = {key: overlay}
        result = merge(result, overlay, like)
    return result


# --- checking -------------------------------------------------------------------------------------------------------


def validate(cls: type[T], settings: Mapping[str, Any] | T, where: str = "") -> T:
    """Build `cls` from plain settings, strictly.

    Args:
        where: dotted path of the settings, a prefix of every path in an error ("train").

    Raises:
        ConfigError: every problem at once: unknown keys, wrong types, unknown names (with the closest known name)
            and the ValueErrors of the classes' `__post_init__`.
    """
    import pydantic

    if isinstance(settings, cls):
        return settings
    if not isinstance(settings, Mapping):
        raise ConfigError([f"{where or 'settings'}: expected a mapping, found {_describe(settings)}"])
    filled = _fill_tags(settings, cls)
    try:
        # JSON mode: a list fills a tuple, text fills a path, and nothing else is converted (no "48" for 48).
        adapter = _adapter(cls)  # type: ignore[arg-type]  # a class is hashable
        valid: T = adapter.validate_json(json.dumps(filled, default=_plain), strict=True)
    except pydantic.ValidationError as failure:
        raise ConfigError(_problems(failure, filled, cls, where)) from None
    return valid


@functools.cache
def _adapter(cls: Any) -> Any:
    import pydantic

    for part in config_classes(cls):
        if "__pydantic_config__" not in part.__dict__:
            part.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return pydantic.TypeAdapter(cls)


def json_schema(cls: type) -> dict[str, Any]:
    """JSON schema of a config class."""
    schema: dict[str, Any] = _adapter(cls).json_schema()
    return schema


def _fill_tags(node: Any, annotation: Any, key: str | None = None) -> Any:
    """The settings with every implied tag written out."""
    if not isinstance(node, Mapping):
        return node
    shape = shape_of(annotation)
    if shape.value is not None:
        entries = {str(name): ({} if value is None else value) for name, value in node.items()} if shape.keyed else node
        tag = shape.keyed
        return {
            name: _fill_tags({tag: name, **value} if tag and isinstance(value, Mapping) else value, shape.value)
            for name, value in entries.items()
        }
    cls = shape.pick(node)
    known = field_types(cls) if cls else {}
    return {
        name: _fill_tags(forgiven(value, known[name]), known[name]) if name in known else value
        for name, value in node.items()
    }


_COUNT = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([kKMGBT])")
_TIMES = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


def forgiven(value: Any, annotation: Any) -> Any:
    """A value as people write it: `1e6`, `1M` or `262_144` for a count, one item for a list of them.

    Only what can mean one thing is read; all else is left for the error that says what was expected.
    """
    kinds = _kinds(annotation)
    if int in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    if int in kinds and isinstance(value, str) and (match := _COUNT.fullmatch(value.strip())):
        exact = decimal.Decimal(match[1].replace("_", "")) * _TIMES[match[2]]
        return int(exact) if exact == exact.to_integral_value() else value
    item = next(
        (get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple and get_args(kind)[1:] == (...,)), None
    )
    if item is None or type(value) in kinds or any(get_origin(k) is Literal and value in get_args(k) for k in kinds):
        return value  # text where text is allowed beside a list of it stays text
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return [forgiven(value, item)]
    return [forgiven(one, item) for one in value] if isinstance(value, list) else value


def _kinds(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation itself, without Annotated."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


_OFF = ("off", "none", "constant", "keep")
"""Choices that mean "nothing of the kind"."""


def _problems(failure: Any, settings: Any, cls: type, where: str) -> list[str]:
    found: dict[str, list[str]] = {}
    for error in failure.errors(include_url=False):
        path, message = _problem(error, settings, cls)
        dotted = ".".join(part for part in (where, path) if part) or "settings"
        messages = found.setdefault(dotted, [])
        if message not in messages:
            messages.append(message)
    return [f"{path}: {'; or '.join(messages)}" for path, messages in found.items()]


def _problem(error: Any, settings: Any, cls: type) -> tuple[str, str]:
    """Dotted path and message of one pydantic error. Tags and union members in its location are skipped."""
    parts: list[str] = []
    node: Any = settings
    annotation: Any = cls
    parent: type | None = None
    location = list(error["loc"])
    for depth, part in enumerate(location):
        if isinstance(node, Mapping):
            shape = shape_of(annotation)
            parent = shape.pick(node)
            if part in node:
                node = node[part]
            elif depth == len(location) - 1 and error["type"] == "missing":
                node = None
            else:
                continue
            annotation = (
                shape.value if shape.value is not None else field_types(parent).get(str(part)) if parent else None
            )
            parts.append(str(part))
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
            items = [get_args(kind)[0] for kind in _kinds(annotation) if get_origin(kind) is tuple]
            annotation = items[0] if items else None
            parts.append(str(part))
    path = ".".join(parts)
    kind, context = error["type"], error.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        return path, _unknown_key(parts, parent, cls)
    if kind == "missing":
        return path, "is required"
    if kind == "union_tag_invalid":
        tag = str(context["discriminator"]).strip("'")
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        return (
            path,
            f"unknown {tag} {context['tag']!r}{did_you_mean(str(context['tag']), known)} (known: {', '.join(known)})",
        )
    if kind == "union_tag_not_found":
        tag = str(context["discriminator"]).strip("'")
        names = [name for part in shape_of(annotation).classes if (name := tag_value(part, tag))]
        return path, f"needs {tag!r}, one of: {', '.join(names)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        hint = did_you_mean(error["input"], known) if isinstance(error["input"], str) else ""
        if str(error["input"]).lower() in ("none", "false", "off", "no") and (off := [k for k in known if k in _OFF]):
            hint = f"; did you mean {off[0]!r}?"
        return path, f"expected {context['expected']}, found {_describe(error['input'])}{hint}"
    if kind == "value_error":
        return path, str(context["error"])
    if kind in ("dataclass_type", "dict_type"):
        return path, f"expected a mapping, found {_describe(error['input'])}"
    message = error["msg"].replace("Input should be", "expected")
    return path, f"{message}, found {_describe(error['input'])}"


def _unknown_key(parts: list[str], parent: type | None, cls: type) -> str:
    name = parts[-1]
    known = list(field_types(parent)) if parent else []
    close = did_you_mean(name, known)
    elsewhere = [path for path in key_paths(cls) if path.rsplit(".", 1)[-1] == name and path != ".".join(parts)]
    if not close and elsewhere:
        close = f"; did you mean {elsewhere[0]!r}?"
    return f"unknown key{close or '; known: ' + ', '.join(known)}"


def key_paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted path of every field below a config class."""
    for name, annotation in field_types(cls).items():
        yield prefix + name
        for inner in shape_of(annotation).classes:
            yield from key_paths(inner, f"{prefix}{name}.")


def _describe(value: Any) -> str:
    names = {str: "text", bool: "a boolean", int: "an integer", float: "a number", dict: "a mapping", list: "a list"}
    if value is None:
        return "null"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({names.get(type(value), type(value).__name__)})"


# --- plain data -----------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, PurePath):
        return spelled(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON-able data that `validate` reads back as an equal config."""
    result = _to_plain(config)
    if not isinstance(result, dict):
        raise TypeError(f"expected a config dataclass or a mapping, found {type(config).__name__}")
    return result


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return _to_plain(value.value)
    if isinstance(value, PurePath):
        return spelled(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} is not plain data")


def identity(settings: Any) -> str:
    """sha256 (hex) of the canonical JSON of a config or of plain settings: sorted keys, no spaces, UTF-8."""
    text = json.dumps(_to_plain(settings), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- settings files -------------------------------------------------------------------------------------------------


def presets(folder: Path = PRESETS) -> dict[str, Path]:
    """The presets in a folder by name; by default those that ship with the package."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_settings(name: str, folder: Path = PRESETS) -> Path:
    """The settings file for `-c NAME`: a path or the name of a preset. Raises UsageError when neither exists."""
    path = Path(name)
    if path.is_file():
        return path
    known = presets(folder)
    if name in known:
        return known[name]
    if path.is_dir():
        raise UsageError(f"-c {name}: is a folder, expected a YAML file or the name of a preset")
    message = f"-c {name}: no such file and no such preset{did_you_mean(name, known)}"
    raise UsageError(message, f"give a file, or one of the presets: {', '.join(known) or 'none'}")
