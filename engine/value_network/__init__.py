"""Inverse value learning (arXiv 2410.21027): a small network whose logits, added to a frozen model's, do what
fine-tuning that model would have done.

Left out: training's machinery (`engine.finetune`) and the endpoint (`serve_apps`). Called by `jobs` and `serve_apps`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
