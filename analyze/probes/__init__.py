"""Labels of rows, linear probes for them, their scores and intervals."""
