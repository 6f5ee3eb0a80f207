"""Frames to tokens: the frozen timm model, its layers, its weights and what a frame goes through before."""
