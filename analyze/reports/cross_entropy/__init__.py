"""The cross-entropy report: the language model's loss with the coder spliced in."""
