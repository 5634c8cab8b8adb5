"""Meta-structure: how much of the decoder's rows a small dictionary of them explains."""
