"""The errors a user sees: what was found, what was expected, and the command to run next."""

from __future__ import annotations

from typing import ClassVar


class PipelineError(Exception):
    """Something a user can act on.

    Args:
        message: what was found and what was expected.
        hint: the command (or the setting) to try next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PipelineError):
    """A flag or a value that cannot be used (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """Invalid settings, with all problems at once (exit code 2)."""

    def __init__(self, problems: list[str], hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = problems


class DataError(PipelineError):
    """A cache or run that is missing, incomplete, damaged, or has different settings (exit code 3)."""

    exit_code = 3
