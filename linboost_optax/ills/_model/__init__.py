"""Networks as ILLS sees them: described, read off a model, started and run."""
