"""A training step under sharding: what is said between devices, and held on each."""
