"""One pass over a cache: batches of codes for the reports, and the best activations kept on the way."""
