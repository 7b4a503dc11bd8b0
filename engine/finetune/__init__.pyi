from .bpe_dropout import BpeDropout
from .order import DataOrder
from .packing import pack, share

__all__ = ["BpeDropout", "DataOrder", "pack", "share"]
