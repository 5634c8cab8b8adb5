"""One coder trained by several processes: what they tell each other, and what each of them owns."""
