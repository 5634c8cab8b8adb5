"""The reconstruction report (`global`): reconstruction, sparsity, dead latents, geometry of the decoder."""
