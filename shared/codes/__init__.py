"""Sparse codes of rows: their two orders, moments, pairs and best entries, and the statistics made of them."""
