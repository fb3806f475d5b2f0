"""The page `docs/cost.md`: its tables and its figure, from the JSON of three jobs."""
