"""A judge behind any endpoint with OpenAI's chat completions: several requests at a time, at a rate that the server
bears, tried again after passing failures, and never beyond the limits of requests and cost.

The key is read from an environment variable when a request is sent. It is in no setting, file, log or message.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2 as httpx

from ...shared.errors import PipelineError, UsageError
from .answers import Answer
from .chat import ChatJudge, Keep, Prompt
from .configs import EndpointConfig

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds until the second attempt, doubled for each further one, and the most of them; a server may request more."""

PASSING = frozenset({408, 409, 425, 429})
"""Status codes, beside 5xx, after which a request is tried again."""


class EndpointJudge(ChatJudge):
    """A language model behind an endpoint.

    Args:
        config: its settings.
        answers: the file of answers.
        max_requests: most requests that are sent.
        max_cost: most that they may cost, in the currency of the prices.

    Raises:
        UsageError: no model is named, the key's variable is not set, or the key would be readable on the way.
    """

    config: EndpointConfig

    def __init__(
        self,
        config: EndpointConfig,
        answers: Path | None = None,
        *,
        max_requests: int = 10_000,
        max_cost: float = 1.0,
        **others: object,
    ) -> None:
        if not config.model:
            raise UsageError("explain.judge.model: the endpoint's model is not named", "--set explain.judge.model=NAME")
        super().__init__(config, answers)
        self.max_requests, self.max_cost = max_requests, max_cost
        self._stopped = threading.Event()
        self._next = 0.0  # no request before this moment
        self._held_in, self._held_out = 0, 0  # tokens of the requests that are under way, at most
        _key(config)

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        if self.config.price_in is None or self.config.price_out is None:
            return None
        return (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / 1e6

    def settings_of(self, prompt: Prompt) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": prompt.messages,
            self.config.limit_field: prompt.limit,
        }
        return body if self.config.temperature is None else {**body, "temperature": self.config.temperature}

    def complete(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        self._stopped = threading.Event()
        failures: list[BaseException] = []  # the first one is the reason; the others were stopped by it
        limits = httpx.Limits(max_connections=self.config.concurrency)
        with (
            httpx.Client(timeout=self.config.timeout, limits=limits, follow_redirects=False) as client,
            ThreadPoolExecutor(self.config.concurrency, "ask") as pool,
        ):

            def ask(number: int) -> None:
                try:
                    keep(number, self._ask(client, prompts[number]))
                except BaseException as error:
                    failures.append(error)
                    self._stopped.set()
                    raise

            futures = [pool.submit(ask, number) for number in range(len(prompts))]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException as error:
                self._stopped.set()
                for future in futures:
                    future.cancel()
                raise (failures[0] if failures else error) from None

    def _ask(self, client: httpx.Client, prompt: Prompt) -> Answer:
        """One answer, after as many attempts as it takes, at most 1 + retries."""
        trouble = ""
        for attempt in range(1 + self.config.retries):
            self._take_turn(prompt)
            try:
                found, trouble, wait = self._attempt(client, prompt)
            finally:
                with self.lock:
                    self._held_in -= prompt.tokens
                    self._held_out -= prompt.limit
            if found is not None:
                return found
            self._pause(_backoff(attempt) if wait is None else wait, everyone=wait is not None)
        raise PipelineError(
            f"{self.config.base_url}: {trouble} (after {1 + self.config.retries} attempts)",
            "the same command continues: answers so far are kept",
        )

    def _attempt(self, client: httpx.Client, prompt: Prompt) -> tuple[Answer | None, str, float | None]:
        """(the answer, or what went wrong, and how long the server asks to wait).

        Raises:
            PipelineError: it went wrong in a way that another attempt would not change.
        """
        try:
            response = client.post(
                f"{self.config.base_url.rstrip('/')}/chat/completions",
                json=self.settings_of(prompt),
                headers=_headers(self.config),
            )
        except httpx.TransportError as error:  # no connection, no answer in time, or half of one
            return None, f"{type(error).__name__}: {error}", None
        if response.status_code == 200:
            found = _answer(response, prompt)
            return found, f"an answer that is not a chat completion: {self._said(response)}", None
        trouble = f"status {response.status_code}: {self._said(response)}"
        if response.status_code < 500 and response.status_code not in PASSING:
            raise PipelineError(f"{self.config.base_url} refused: {trouble}", _advice(self.config, response))
        return None, trouble, _retry_after(response)

    def _take_turn(self, prompt: Prompt) -> None:
        """Waits until the next request may begin, and counts it.

        Raises:
            PipelineError: a limit is reached, or another request failed for good.
        """
        if self._stopped.is_set():
            raise PipelineError("stopped")
        with self.lock:
            now = time.monotonic()
            begin = max(now, self._next)
            if self.config.requests_per_minute is not None:
                self._next = begin + 60 / self.config.requests_per_minute
            if self.asked >= self.max_requests:
                raise PipelineError(
                    f"stopped at {self.asked:,} requests, explain.max_requests; answers so far are kept",
                    f"--set explain.max_requests={2 * self.max_requests}   (what was answered is kept)",
                )
            read = self.tokens_in + self._held_in + prompt.tokens
            cost = self.cost(read, self.tokens_out + self._held_out + prompt.limit)
            if cost is not None and cost > self.max_cost:
                raise PipelineError(
                    f"stopped before more than explain.max_cost ({self.max_cost:g}) is spent; answers so far are kept",
                    f"--set explain.max_cost={2 * self.max_cost:g}   (what was answered is kept)",
                )
            self.asked += 1
            self._held_in += prompt.tokens
            self._held_out += prompt.limit
        if self._stopped.wait(begin - now):
            raise PipelineError("stopped")

    def _pause(self, seconds: float, everyone: bool) -> None:
        """Waits before the next attempt; if the server says so, every request waits."""
        if everyone:
            with self.lock:
                self._next = max(self._next, time.monotonic() + seconds)
        elif self._stopped.wait(seconds):
            raise PipelineError("stopped")

    def _said(self, response: httpx.Response) -> str:
        """The beginning of a response, on one line, without the key."""
        text = " ".join(response.text.split())[:200] or "(empty)"
        key = _key(self.config)
        return text.replace(key, "[key]") if key else text


def _key(config: EndpointConfig) -> str | None:
    """The key. Raises UsageError where it is not set, or would be readable on the way."""
    if config.key_env is None:
        return None
    key = os.environ.get(config.key_env, "").strip()
    if not key:
        raise UsageError(
            f"explain.judge.key_env names {config.key_env}, which is not set in the environment",
            f"export {config.key_env}=…, or --set explain.judge.key_env=null for a server without keys",
        )
    if not config.is_private:
        raise UsageError(
            f"{config.base_url} is not encrypted, and the key in {config.key_env} would be readable on the way",
            "an address with https://, or --set explain.judge.key_env=null for a server without keys",
        )
    return key


def _headers(config: EndpointConfig) -> dict[str, str]:
    key = _key(config)
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _advice(config: EndpointConfig, response: httpx.Response) -> str:
    if response.status_code in (401, 403):
        return "--set explain.judge.key_env=VARIABLE names the environment variable with the key"
    if response.status_code == 404:
        return f"check explain.judge.base_url (it ends in /v1 at most servers) and explain.judge.model={config.model}"
    return "check explain.judge: model, limit_field, temperature"


def _answer(response: httpx.Response, prompt: Prompt) -> Answer | None:
    """The answer in a response; None if it is not a chat completion. A count of tokens that is missing is estimated."""
    try:
        document = response.json()
        text = document["choices"][0]["message"]["content"]
        usage = document.get("usage") or {}
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    counted = [n if isinstance(n, int) and 0 <= n < 1 << 31 else None for n in (read, written)]
    return Answer(
        text,
        prompt.tokens if counted[0] is None else counted[0],
        len(text) // 3 + 1 if counted[1] is None else counted[1],
    )


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt; drawn from the upper half, so that requests that failed together part."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**attempt) * random.uniform(0.5, 1.0)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that a server asks to wait, at most ten minutes: a number, or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    try:
        return min(600.0, max(0.0, float(value)))
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
    seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(600.0, max(0.0, seconds.total_seconds()))
