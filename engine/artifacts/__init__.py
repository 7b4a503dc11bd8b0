"""Published artifacts, datasets and models: a directory whose manifest names every file, and nothing else exists.

An artifact is built in a staging place that readers refuse and takes its final name as the last step: by renaming the
directory on a local disk, by a conditional put of the manifest on object stores, where no rename is atomic.

Public names are listed in `__init__.pyi` and loaded on first use. Left out: how parts and weights are made. Called by
every job that reads or publishes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
