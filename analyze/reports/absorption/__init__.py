"""The absorption report: how much of a label's direction other latents have taken over."""
