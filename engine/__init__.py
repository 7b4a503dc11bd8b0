"""Headrace: a Ray-distributed engine for post-training language models.

The library half of the project. It knows nothing of `jobs/`, `serve_apps/` or `tuning/`, which call it.
"""

__version__ = "0.1.0"
