"""The steps of an iteration, and the choices there are for each."""
