"""The UCI protocol: data in splits, competitors, and figures that others published."""
