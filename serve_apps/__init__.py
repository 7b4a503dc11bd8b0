"""Ray Serve applications and their configuration files. Called by `headrace serve`, once it is there."""
