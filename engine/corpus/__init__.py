"""The corpus room: from files at any URI to shards of Arrow rows and back, each row exactly once."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
