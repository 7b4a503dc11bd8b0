"""Supervised fine-tuning and reward models on Ray Train and DeepSpeed.

Public names are listed in `__init__.pyi` and loaded on first use, so importing this room imports nothing heavy.
Left out: evaluation. Called by `jobs`, and for its training parts by `engine.rlhf`, `engine.value_network`,
`engine.selection` and `engine.sieve`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
