"""What every text source yields."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """One text of a dataset.

    ``source`` says where it came from (a file and line, a help topic, a row of a hub dataset); ``domain`` is a coarse
    label of its kind, empty where the dataset has none.
    """

    text: str
    source: str
    domain: str = ""
