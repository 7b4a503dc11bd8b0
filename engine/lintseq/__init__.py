"""LintSeq: programs as sequences of insertion edits, every state of which passes a linter (arXiv 2410.02749).

Public names are listed in `__init__.pyi` and loaded on first use, so importing this room imports nothing heavy.
Called by `jobs.lintseq`; the text format also by `engine.finetune` and `engine.rlhf`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
