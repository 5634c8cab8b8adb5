"""Hours, bytes and money of a harvest, a training and an analysis, from constants in one file."""
