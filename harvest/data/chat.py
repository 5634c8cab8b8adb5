"""Chats as text: the tokenizer's chat template, and which of its characters are whose."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...shared.errors import UsageError
from .reading import BadRowError, refuse_surrogates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Other names of roles, as ShareGPT and Gemma have them."""

_KEYS = (("role", "content"), ("from", "value"))
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"  # private-use characters: stand-ins for contents
_STAND_IN = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class Span:
    """A stretch of a rendered chat; role None: the template's own text."""

    text: str
    role: str | None


def messages_of(value: object, column: str, where: str) -> tuple[dict[str, Any], ...]:
    """The messages of a row as `role` and `content`, with any other keys that they have.

    Raises:
        BadRowError: it is no list of messages with text in them.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        kind = "null" if value is None else "an empty list" if value == [] else type(value).__name__
        raise BadRowError(
            where,
            f"{column!r} is no list of messages",
            f": column {column!r} is {kind}, expected a list of messages",
            setting="harvest.text_column",
        )
    return tuple(_message(one, f"message {i} of column {column!r}", where) for i, one in enumerate(value))


def _message(value: object, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRowError(where, "a message is no object", f": {name} is {type(value).__name__}, expected an object")
    keys = next((pair for pair in _KEYS if isinstance(value.get(pair[0]), str)), None)
    if keys is None:
        raise BadRowError(where, "a message without role", f": {name} has no 'role' (or 'from'); it has {list(value)}")
    role_key, content_key = keys
    content = value.get(content_key)
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        found = "null" if content is None else type(content).__name__
        raise BadRowError(
            where, "a message without text", f": the {content_key!r} of {name} is {found} or has no text, expected text"
        )
    refuse_surrogates(content, name, where)
    role = value[role_key]
    others = {key: one for key, one in value.items() if key not in (role_key, content_key) and one is not None}
    return {**others, "role": ROLES.get(role, role), "content": content}


def render(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, where: str) -> list[Span]:
    """The chat as the tokenizer's template writes it, cut into the template's text and the messages'.

    The template is applied twice: to the messages, and to stand-ins in place of their contents. If the second with the
    contents put back, as they are or stripped, is the first, it says exactly what is whose. Else the template changes
    contents (it may drop the reasoning of earlier turns): then its own text is looked for in the first, in order, and
    the rest is the messages'.

    Raises:
        UsageError: the tokenizer has no chat template.
        BadRowError: the template refuses the messages (roles that do not alternate), or hides what is whose.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "harvest.format: the tokenizer has no chat template",
            hint="use the chat model's tokenizer, or write the chats as text and --set harvest.format=text",
        )
    bare = [{**message, "content": _stand_in(message["content"], i)} for i, message in enumerate(messages)]
    whole, marked = (_apply(tokenizer, one, where) for one in (messages, bare))
    pieces = _STAND_IN.split(marked)
    template, order = pieces[::2], [int(number) for number in pieces[1::2]]
    as_given = [str(messages[i]["content"]) for i in order]
    stripped = [text.strip() for text in as_given]
    contents = next((one for one in (as_given, stripped) if _joined(template, one) == whole), None)
    if contents is None:
        contents = _between(template, whole, where)
    spans = [Span(template[0], None)]
    for number, content, after in zip(order, contents, template[1:], strict=True):
        spans += [Span(content, messages[number]["role"]), Span(after, None)]
    return [span for span in spans if span.text]


def _stand_in(content: str, number: int) -> str:
    """A word in place of the content; white space alone stays, since a template may treat it as nothing."""
    return f"{_OPEN}{number}{_CLOSE}" if content.strip() else content


def _joined(template: Sequence[str], contents: Sequence[str]) -> str:
    return "".join(text for pair in zip(template, [*contents, ""], strict=True) for text in pair)


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], where: str) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template([dict(one) for one in messages], tokenize=False))
    except (TemplateError, TypeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise BadRowError(
            where, f"refused by the chat template: {text}", f": the chat template refuses the messages: {text}"
        ) from None


def _between(template: Sequence[str], whole: str, where: str) -> list[str]:
    """What lies between the template's texts, each found after the one before; the last one at the end."""
    contents: list[str] = []
    at = len(template[0])
    fits = whole.startswith(template[0])
    for place, text in enumerate(template[1:], 1):
        last = place == len(template) - 1
        found = (len(whole) - len(text) if whole.endswith(text) else -1) if last else whole.find(text, at)
        fits = fits and found >= at
        if not fits:
            raise BadRowError(
                where,
                "changed by the chat template",
                f": the chat template changes message {place - 1} so that its text cannot be told from the template's",
            )
        contents.append(whole[at:found])
        at = found + len(text)
    return contents
