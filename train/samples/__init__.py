"""Activation samples, collected while a coder trains: the strongest activations of each latent, in their contexts."""
