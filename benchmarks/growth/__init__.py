"""A training step on one device as one size grows, and what it costs beside Adam's."""
