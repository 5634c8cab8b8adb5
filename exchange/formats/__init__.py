"""One file per format: what it holds, how it is written, and how it is read."""

from __future__ import annotations

from .registry import FORMATS, Format, Options, Part, recognise

__all__ = ["FORMATS", "Format", "Options", "Part", "recognise"]
