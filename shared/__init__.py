"""What all three stages use: cache, coders, codes, settings, runs, console and errors."""
