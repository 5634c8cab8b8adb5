"""Settings: read from YAML, merged, validated once and frozen, and documented from their classes."""
