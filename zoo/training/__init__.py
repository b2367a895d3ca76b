"""Train and evaluate systems: the Lightning modules that every paper builds on."""
