"""The subject of an analysis: a run with its cache, the geometry of its decoder, and its language model."""
