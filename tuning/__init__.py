"""Searches over recipes on Ray Tune: spaces, drivers of trials, schedulers, and what a search leaves behind.

Public names are listed in `__init__.pyi` and loaded on first use, so importing this room imports nothing heavy.
Left out: what a trial does (its job). Called by `jobs.tune`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
