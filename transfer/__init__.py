"""Caches from other programs and for them: activations on disk come in, sites and codes go out. No model runs."""
