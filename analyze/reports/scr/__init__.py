"""Spurious correlation removal: whether two labels of documents lie in latents of their own."""
