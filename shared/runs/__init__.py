"""A training run on disk: its folder, the samples it leaves, and the check that it is intact."""
