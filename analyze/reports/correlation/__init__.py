"""Correlation: which latents fire together, and which duplicate one another."""
