"""A coder on a running language model: which latents fire on new text, and what the model does with them changed."""
