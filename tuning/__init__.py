"""Ray Tune: search spaces and driver functions. Called by `headrace tune`, once it is there."""
