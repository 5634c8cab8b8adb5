"""Judges of latents: one file each, and its line in JUDGES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...shared.config.registry import Registry, tagged
from .configs import EndpointConfig, JudgeConfig, LocalConfig, RuleConfig

JUDGES: Registry[Any] = Registry(
    __package__,
    {
        "rule": (RuleConfig, "rule.RuleJudge"),
        "endpoint": (EndpointConfig, "endpoint.EndpointJudge"),
        "local": (LocalConfig, "local.LocalJudge"),
    },
)
"""Kind → judge, built from (its settings, file of answers, limits)."""

if TYPE_CHECKING:
    AnyJudgeConfig = JudgeConfig
else:
    AnyJudgeConfig = tagged(JUDGES.configs(), "kind")

__all__ = ["JUDGES", "AnyJudgeConfig", "JudgeConfig", "RuleConfig"]
