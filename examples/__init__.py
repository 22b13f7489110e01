"""Complete programs, run from the repository's root: `python -m examples.digits`."""
