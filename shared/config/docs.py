"""Settings as documents: commented YAML, JSON schema and Markdown, all from the config classes and their docstrings.

A field's documentation is the string right below it in its class, so that what `pipeline config show` prints, what an
editor shows from the schema and what docs/configuration.md says cannot drift apart.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from .registry import TAGS
from .settings import config_classes, dump_yaml, field_types, json_schema, shape_of, to_dict

WIDTH = 120


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring of every field, own and inherited, as one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_docs(base)
    return docs


def _own_docs(cls: type) -> dict[str, str]:
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # made at run time: the fields are sections, documented by their own class
        return {}
    body = ast.parse(textwrap.dedent(source)).body[0]
    docs: dict[str, str] = {}
    previous: ast.stmt | None = None
    for statement in getattr(body, "body", []):
        match previous, statement:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
        previous = statement
    return docs


def class_doc(cls: type) -> str:
    """The first paragraph of a config class's docstring, as one line; empty when it has none of its own."""
    text = cls.__dict__.get("__doc__") or ""
    if text.startswith(f"{cls.__name__}("):  # what dataclass() writes by itself
        return ""
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def commented_yaml(config: Any) -> str:
    """A config as YAML with every field's documentation beside it; reads back as the same config."""
    return "".join(_yaml_lines(to_dict(config), type(config), 0))


def _yaml_lines(settings: Mapping[str, Any], annotation: Any, depth: int) -> list[str]:
    shape = shape_of(annotation)
    cls = shape.pick(settings)
    docs = field_docs(cls) if cls else {}
    types = field_types(cls) if cls else {}
    lines: list[str] = []
    for name, value in _tag_first(settings):
        inner = shape.value if shape.value is not None else types.get(name)
        nested = isinstance(value, Mapping) and bool(value)
        doc = docs.get(name) or section_doc(inner, value)
        line = f"{name}:" if nested else dump_yaml({name: value}).rstrip("\n")
        if depth == 0 and lines:
            lines.append("\n")
        lines += _with_comment(line, doc, "  " * depth)
        if nested:
            lines += _yaml_lines(value, inner, depth + 1)
    return lines


def _tag_first(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A base class's fields come first in a dataclass; a reader wants to know the kind before its settings."""
    return sorted(settings.items(), key=lambda item: item[0] not in TAGS)


def _with_comment(line: str, doc: str, indent: str) -> list[str]:
    block = textwrap.indent(line, indent)
    if not doc:
        return [block + "\n"]
    if "\n" not in line and len(block) + len(doc) + 4 <= WIDTH:
        return [f"{block}  # {doc}\n"]
    comment = textwrap.wrap(doc, WIDTH - len(indent) - 2)
    return [f"{indent}# {text}\n" for text in comment] + [block + "\n"]


def section_doc(annotation: Any, settings: Any) -> str:
    """What the class of a section, or of an entry of a mapping, says of itself."""
    cls = shape_of(annotation).pick(settings)
    return class_doc(cls) if cls else ""


def described_schema(cls: type) -> dict[str, Any]:
    """JSON schema with every field's documentation as its description."""
    schema = json_schema(cls)
    definitions = {cls.__name__: schema, **schema.get("$defs", {})}
    for part in config_classes(cls):
        qualified = f"{part.__module__}.{part.__qualname__}".replace(".", "__")
        definition = definitions.get(part.__name__) or definitions.get(qualified) or {}
        if doc := class_doc(part):
            definition["description"] = doc
        for name, doc in field_docs(part).items():
            if name in definition.get("properties", {}):
                definition["properties"][name]["description"] = doc
    return schema


def markdown(cls: type) -> str:
    """One table of fields per config class below `cls`: name, default, meaning."""
    parts: list[str] = []
    paths = _paths_of(cls)
    for part in config_classes(cls)[1:]:
        places = ", ".join(f"`{path}`" for path in paths[part])
        parts.append(f"## `{part.__name__}`: {places}\n")
        if doc := class_doc(part):
            parts.append(f"{doc}\n")
        rows = ["| key | default | meaning |", "|---|---|---|"]
        docs = field_docs(part)
        for field in sorted((f for f in dataclasses.fields(part) if f.init), key=lambda f: f.name not in TAGS):
            meaning = docs.get(field.name, "").replace("|", "\\|")
            rows.append(f"| `{field.name}` | {_default(field)} | {meaning} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value: Any = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value):
        return f"see `{type(value).__name__}`"
    text = dump_yaml({"x": to_dict({"x": value})["x"]}).removeprefix("x:").strip()
    return f"`{text}`" if "\n" not in text else "see below"


def _paths_of(cls: type) -> dict[type, list[str]]:
    """The dotted paths at which each config class may stand; `*` is a name of one's own choice."""
    found: dict[type, list[str]] = {}

    def visit(part: type, prefix: str) -> None:
        for name, annotation in field_types(part).items():
            shape, path = shape_of(annotation), f"{prefix}{name}"
            while shape.value is not None:
                shape, path = shape_of(shape.value), f"{path}.*"
            for inner in shape.classes:
                if path not in found.setdefault(inner, []):
                    found[inner].append(path)
                    visit(inner, f"{path}.")

    visit(cls, "")
    return found
