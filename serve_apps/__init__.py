"""Ray Serve applications and their configuration files. Called, by their names, by `headrace serve` and Serve."""
