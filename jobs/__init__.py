"""One file per job, each readable from top to bottom; `jobs.cli` is the command line."""
