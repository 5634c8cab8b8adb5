"""Where text comes from, and how it becomes sequences of tokens."""
