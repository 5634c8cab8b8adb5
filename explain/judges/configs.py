"""Settings of the judges."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Settings common to all judges."""

    kind: str
    """Which judge: a key of JUDGES."""

    @property
    def folder(self) -> str:
        """Name of the folder of its explanations."""
        return self.kind


@dataclass(frozen=True, kw_only=True)
class RuleConfig(JudgeConfig):
    """Rules on tokens and the tokens before them, learned on half of the examples; no language model."""

    kind: Literal["rule"] = "rule"
    terms: int = 3
    """Most alternatives of a rule ("… or …")."""

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"terms must be at least 1, not {self.terms}")


@dataclass(frozen=True, kw_only=True)
class ChatConfig(JudgeConfig):
    """Settings common to language models."""

    model: str = ""
    """Name of the model at the endpoint, or the folder of a checkpoint."""
    batch: int = 10
    """Windows of one question; fewer are answered better by small models."""
    label_tokens: int = 200
    """Most tokens of a label and what is written before it."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.label_tokens < 1:
            raise ValueError("batch and label_tokens are at least 1")

    @property
    def folder(self) -> str:
        return "".join(c if c.isalnum() or c in ".-_" else "-" for c in self.model).strip(".-") or self.kind


@dataclass(frozen=True, kw_only=True)
class EndpointConfig(ChatConfig):
    """Any server with OpenAI's chat completions: OpenAI, vLLM, llama.cpp, Ollama, a gateway."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str = "http://localhost:8000/v1"
    """Address of the server, up to and including /v1."""
    key_env: str | None = None
    """Environment variable that holds the key, for example OPENAI_API_KEY; null: no key. The key itself is never
    written anywhere."""
    concurrency: int = 4
    """Requests at a time."""
    requests_per_minute: float | None = None
    """Most requests begun in a minute; null: no limit of our own."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""
    retries: int = 6
    """Further attempts after status 429, 5xx, a timeout or a lost connection."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit of an answer's tokens."""
    temperature: float | None = 0.0
    """Temperature of the answers; null: the server's own."""
    price_in: float | None = None
    """Price of a million tokens read, in any currency; null: not known."""
    price_out: float | None = None
    """Price of a million tokens written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"base_url must begin with http:// or https:// and a host, not {self.base_url!r}")
        if address.username or address.password or address.query or address.fragment:
            raise ValueError("base_url holds more than an address; keys go into an environment variable: key_env")
        if self.concurrency < 1 or self.retries < 0 or not self.timeout > 0:
            raise ValueError("concurrency is at least 1, retries at least 0, timeout more than 0")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ValueError("requests_per_minute must be more than 0")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out come together")

    @property
    def is_private(self) -> bool:
        """Whether a key sent to this address is not readable on the way: https, or this machine."""
        address = urlsplit(self.base_url)
        return address.scheme == "https" or _is_this_machine(address.hostname or "")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, kw_only=True)
class LocalConfig(ChatConfig):
    """A causal language model on this machine, run by `transformers`."""

    kind: Literal["local"] = "local"
    dtype: str = "auto"
    """Number format of its weights, as harvest.dtype."""
    prompts: int = 8
    """Prompts that run together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts < 1:
            raise ValueError(f"prompts must be at least 1, not {self.prompts}")
