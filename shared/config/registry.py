"""Unions of config classes built from a registry, chosen by a tag.

A registry maps names to classes. The config class of each entry is a frozen dataclass with a
field `architecture` (coders) or `kind` (penalties, samplers, reports, schedules) of type `Literal["name"]` defaulting
to that name. A union is built from the registry when the module is imported, so that a new entry needs no second list.
A type checker cannot follow such a union, so it sees the base class instead:

    if TYPE_CHECKING:
        AnyPenaltyConfig = PenaltyConfig
    else:
        AnyPenaltyConfig = tagged({"ortsae": OrtSAEConfig, ...}, "kind")
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T", bound=type[Any])

TAGS = ("architecture", "kind")


@dataclasses.dataclass(frozen=True)
class Keyed:
    """Marks a `dict[str, union]` whose keys are the default tags of its entries: `{ortsae: {weight: 0.25}}`."""

    tag: str


class Registry(MutableMapping[str, T]):
    """Name → class. An entry is the class itself, or its config class and where to import the class from.

    Settings need the config classes only, so that `pipeline status` or a typo is answered without importing torch.

    Args:
        package: where the paths begin: `__package__`.
        entries: name → class with a `config_class`, or (config class, "module.Class").
    """

    def __init__(self, package: str | None, entries: Mapping[str, T | tuple[type, str]]) -> None:
        self._package = package
        self._entries = dict(entries)

    def configs(self) -> dict[str, type]:
        """Name → config class."""
        return {
            name: entry[0] if isinstance(entry, tuple) else entry.config_class for name, entry in self._entries.items()
        }

    def __getitem__(self, name: str) -> T:
        entry = self._entries[name]
        if isinstance(entry, tuple):
            module, _, attribute = entry[1].rpartition(".")
            found: T = getattr(importlib.import_module(f".{module}", self._package), attribute)
            self._entries[name] = found
            return found
        return entry

    def __setitem__(self, name: str, entry: T) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def tag_value(cls: type, tag: str) -> str | None:
    """The one value that a config class accepts for its tag, None when it has no such field."""
    if not any(field.name == tag for field in dataclasses.fields(cls)):
        return None
    hint = get_type_hints(cls)[tag]
    values = get_args(hint) if get_origin(hint) is Literal else ()
    return values[0] if len(values) == 1 else None


def tagged(configs: Mapping[str, type], tag: str) -> Any:
    """The union of the registry's config classes, told apart by `tag` ("architecture" or "kind").

    Raises TypeError when a class does not carry its own name as `Literal[name]` with that default.
    """
    from pydantic import Field

    if tag not in TAGS:
        raise TypeError(f"tag {tag!r} is not one of {TAGS}")
    for name, cls in configs.items():
        default = {field.name: field.default for field in dataclasses.fields(cls)}.get(tag)
        if tag_value(cls, tag) != name or default != name:
            raise TypeError(f'{cls.__name__} is registered as {name!r} and needs `{tag}: Literal["{name}"] = "{name}"`')
    classes = tuple(configs.values())
    if len(classes) == 1:
        return classes[0]
    return Annotated[Union[classes], Field(discriminator=tag)]  # noqa: UP007 (built at run time)


def keyed(configs: Mapping[str, type], tag: str = "kind") -> Any:
    """`dict[str, tagged(configs)]` in which an entry without a tag takes its key as the tag."""
    union: Any = tagged(configs, tag)
    return Annotated[dict[str, union], Keyed(tag)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if a known name is close, else ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
