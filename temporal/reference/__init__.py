"""Weights released with the paper, whole or part by part."""
