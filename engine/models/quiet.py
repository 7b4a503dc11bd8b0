"""Loading without what transformers draws and prints of it: every worker would draw several bars.

Left out: its other warnings, which stay, and weights that are missing, on which `engine.models.loading` insists itself.
Called by it and by `engine.models.packaged`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Turn progress bars and load reports off for a while; bars come on again only if they were."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    logger = logging.getLogger("transformers.modeling_utils")
    transformers_logging.disable_progress_bar()
    logger.addFilter(_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_no_report)
        if shown:
            transformers_logging.enable_progress_bar()


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in str(record.msg)
