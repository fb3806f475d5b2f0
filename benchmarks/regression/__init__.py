"""Regression problems, trainers and races of the `ills` jobs, and their tables."""
