"""Models: what a recipe's `model:` may name, and how that becomes weights and a tokenizer in this process.

Public names are listed in `__init__.pyi` and loaded on first use, so importing this room imports nothing heavy.
Called by the method rooms.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
