"""The A/B tests behind every number in the README."""
