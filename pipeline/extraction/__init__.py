"""Extraction, a run of it: what is to be done, whether it fits, doing it, and what came of it."""
