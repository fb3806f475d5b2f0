"""Sums over samples and the least-squares problems made of them."""
