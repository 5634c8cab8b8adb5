"""From text to sequences of tokens: reading documents, tokenising, packing."""
