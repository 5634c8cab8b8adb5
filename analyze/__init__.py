"""Cache + run → report: what the coders learned."""
