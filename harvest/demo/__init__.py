"""The embedded default: a small language model, and text that every Python installation carries."""
