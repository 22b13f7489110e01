"""Programs that run end to end, from the repository's root: `python -m examples.digits`."""
