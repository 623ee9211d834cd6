"""Denoising and super-resolution: what was taken away, what was added, and whether it may be."""
