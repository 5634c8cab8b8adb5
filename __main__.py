"""`python -m sparse_pipeline`: the same as the command `pipeline`; also for `torchrun -m sparse_pipeline …`."""

from __future__ import annotations

from .pipeline import main

if __name__ == "__main__":  # a spawned worker imports this module again, under another name
    main()
