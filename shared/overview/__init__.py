"""Finds the caches and runs of a project, and describes each: what `pipeline status` and `pipeline inspect` show."""
