"""A trial on a table: ``IllsRegressor`` against what else one would take."""
