"""Targeted probe perturbation: whether a class of documents lies in latents of its own."""
