"""Matryoshka: one selection of latents, decoded by nested prefixes of the dictionary (arXiv 2503.17547)."""

from __future__ import annotations

from typing import ClassVar

from .batchtopk import BatchTopK
from .configs.base import CoderConfig
from .configs.matryoshka import MatryoshkaConfig
from .nested import Nested


class Matryoshka(Nested, BatchTopK):
    """The loss is the mean over prefixes m_1 < … < m_G = F of the squared error of Σ_{i < m_g} z_i w_i + b."""

    config_class: ClassVar[type[CoderConfig]] = MatryoshkaConfig
    config: MatryoshkaConfig
