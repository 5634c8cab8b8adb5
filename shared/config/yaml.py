"""Reads and writes YAML 1.2 with ruamel.yaml: `3e-4` is a number, `off` is text, and a duplicate key is an error.

Only plain data is ever constructed: no tags, no objects, and no dates (`2024-01-01` is text).
"""

from __future__ import annotations

import functools
import io
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.emitter import Emitter
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from ..errors import ConfigError, UsageError, command

MOST_BYTES, MOST_NESTED, MOST_ALIASES, MOST_EVENTS = 1 << 20, 50, 100, 20_000
"""Bounds of a settings file: characters, depth, uses of an anchor, values and keys (the parser reads a few thousand a
second)."""

_OTHER_IN_YAML_1_1 = re.compile(
    r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
)
"""Text that YAML 1.1 reads as a boolean or a base-60 number. It is quoted, so that other programs read it right too."""


class _Constructor(SafeConstructor):
    """Plain data, and an error for each key that occurs twice."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        # ruamel.yaml finds duplicates too, but not beside a merge key (`<<`), and its message runs over ten lines
        first: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise MarkedYAMLError(problem="a key must be plain text", problem_mark=key_node.start_mark)
            if key in first:
                problem = f"duplicate key {key!r} (first on line {first[key]})"
                raise MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            first[key] = key_node.start_mark.line + 1
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


for _tag in ("timestamp", "value"):  # a date, and the key "="
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """Block style for mappings, flow style for lists of scalars."""

    def represent_list(self, data: list[Any] | tuple[Any, ...]) -> SequenceNode:
        flow = all(not isinstance(item, (list, dict)) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)

    def represent_str(self, data: str) -> ScalarNode:
        style = "'" if _OTHER_IN_YAML_1_1.fullmatch(data) else None
        if re.search("[\x85\u2028\u2029]", data):  # line breaks that only this style keeps apart
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


class _Emitter(Emitter):
    """The quotes that PyYAML chose, so that a file written again keeps its bytes.

    Single quotes wherever they can hold the text (ruamel.yaml prefers double ones for apostrophes and line breaks), and
    quotes around text with a colon in a flow list.
    """

    def choose_scalar_style(self) -> str | None:
        style: str | None = super().choose_scalar_style()
        if style == "" and self.flow_level and ":" in self.event.value:
            return "'"
        key_of_lines = self.simple_key_context and self.analysis.multiline
        if style == '"' and not self.event.style and self.analysis.allow_single_quoted and not key_of_lines:
            return "'"
        return style


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(list, _Representer.represent_list)
_Representer.add_representer(tuple, _Representer.represent_list)


def parse_yaml(text: str, where: str = "text", hint: str | None = None) -> Any:
    """The value of one YAML document.

    Args:
        where: the source of the text, named in errors.

    Raises:
        ConfigError: the text is not YAML, or not plain data; with line and column.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError([f"{where}: more than {MOST_BYTES:,} characters, which no settings file has"], hint)
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    try:
        _check_bounds(reader.parse(text))
        reader = YAML(typ="safe", pure=True)
        reader.Constructor = _Constructor
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError([f"{place}: {error.problem or error.context}"], hint) from None
    except (YAMLError, ValueError, RecursionError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ConfigError([f"{where}: {str(error) or type(error).__name__}"], hint) from None


def _check_bounds(events: Iterable[Any]) -> None:
    """Raises ValueError for a document that would grow: aliases multiply, and deep nesting exhausts the stack."""
    depth = aliases = 0
    for number, event in enumerate(events):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        aliases += isinstance(event, AliasEvent)
        if depth > MOST_NESTED or aliases > MOST_ALIASES:
            raise ValueError(f"nested more than {MOST_NESTED} deep, or more than {MOST_ALIASES} aliases")
        if number > MOST_EVENTS:
            raise ValueError(f"more than {MOST_EVENTS:,} keys and values")


def load_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is not YAML, or holds something other than a mapping.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"settings file {path} is not a regular file", "-c FILE, or -c PRESET")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"settings file {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"cannot read settings file {path}: {error.strerror}") from None
    return parse_mapping(data, path, command("config", "validate", "-c", path))


def parse_mapping(data: bytes, path: Path, hint: str | None = None) -> dict[str, Any]:
    """The mapping in the bytes of a YAML file.

    Raises:
        ConfigError: it is not YAML, holds something other than a mapping, or is beyond the bounds of a settings file.
    """
    hint = f"{hint}   (checks it)" if hint else None
    try:
        found = parse_yaml(data.decode("utf-8"), str(path), hint)
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path} is not UTF-8 text: {error}"], hint) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError([f"{path}: expected a mapping at the top, found {type(found).__name__}"], hint)
    return found


def dump_yaml(data: Any) -> str:
    """YAML text that `parse_yaml` reads back as the same value, keys in the order given."""
    out = io.StringIO()
    with _dumping:
        _dumper().dump(data, out)
    return out.getvalue().removesuffix("...\n")


_dumping = threading.Lock()


@functools.cache
def _dumper() -> YAML:
    """One writer for all calls, under a lock: to set one up takes longer than to write most settings."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer, writer.Emitter = _Representer, _Emitter
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared None
    writer.width = 10_000
    return writer
