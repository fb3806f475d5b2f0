"""Tasks as users write them, after models of others: what a trial is tried on."""
