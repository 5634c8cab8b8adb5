"""Harvest: run a language model once and write its activations to a cache."""
