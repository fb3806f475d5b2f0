"""The pages `docs/evidence_*.md`: claims of two papers, held to the JSON of jobs."""
