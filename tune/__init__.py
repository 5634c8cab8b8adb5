"""Run + model → run: a finished coder, tuned with the language model running around it."""
