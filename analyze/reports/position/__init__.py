"""Position: where in the sequence latents fire, and which are locked to position 0 (BOS) or another stretch."""
