"""SIEVE: a costly teacher's judgement of texts, distilled into a cheap filter by active learning (arXiv 2410.02755).

Public names are listed in `__init__.pyi` and loaded on first use, so importing this room imports nothing heavy.
Called by `jobs.sieve`, `jobs.sieve_apply` and `serve_apps`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
