"""Evaluation that can be believed: untrusted code in a sandbox, pass@k, graded measures, win rates, robustness.

Public names are listed in `__init__.pyi` and loaded on first use, so importing this room imports nothing heavy.
Left out: training. Called by `jobs.evaluate` and by rewards that run code.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
