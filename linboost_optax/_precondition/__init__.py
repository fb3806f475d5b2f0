"""From layers to a whole network: one solver a tapped layer, the identity elsewhere."""
