"""Everything that only a CUDA device can settle, in one command: `python -m benchmarks.device --out DIR`."""
