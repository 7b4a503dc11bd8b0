"""Reinforcement learning from a reward with macro actions: segmenters, credit, losses, learner, rollouts, rewards.

Public names are listed in `__init__.pyi` and loaded on first use, so importing this room imports nothing heavy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
