"""What a run shows of itself: the log, metrics, progress, where the time went, and a report worth looking at.

The drawings stand in a module of their own: `from engine.observe import plots`.

Left out: what is worth showing (each job decides). At the bottom of the house: it knows only errors and storage.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
