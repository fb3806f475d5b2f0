"""Regression problems, the trainers that the `ills` job compares, and its tables."""
