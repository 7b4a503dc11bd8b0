"""Choosing the tasks to train on by first-order estimates: gradients at a meta-initialisation, one regression a subset.

Public names are listed in `__init__.pyi` and loaded on first use, so importing this room imports nothing heavy.
Left out: training (`engine.finetune`), real trials of subsets (`tuning`). Called by `jobs` and `tuning`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
