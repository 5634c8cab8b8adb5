"""What two stages speak: the cache format, the coders, config, metrics, runs, console, errors."""
