"""Which sites each latent of a crosscoder writes, and what differs between two models."""
