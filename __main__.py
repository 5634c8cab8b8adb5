"""`python -m sparse_pipeline`: the same as the command `pipeline`."""

from __future__ import annotations

from .pipeline import main

main()
