"""Runs in training: their session, checkpoints and tracking."""
