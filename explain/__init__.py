"""Explanations of latents from the cache alone: contrastive examples → a one-line label → scores beside controls."""
