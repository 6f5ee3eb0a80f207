"""A run of extraction: what is to be done, whether it fits, doing it, and what came of it."""
