"""The probing report: how well a few latents predict a label."""
