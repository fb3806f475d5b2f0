"""Faults that a training run meets, and mistakes that a user makes, as data."""
