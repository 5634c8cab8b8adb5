"""Top activations: what each latent fires on, in context, and how its samples spread."""
