"""Meshes: places where the workshop runs, and the images that it runs."""
