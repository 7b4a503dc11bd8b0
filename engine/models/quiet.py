"""Loading and saving without what is drawn and printed of it: every worker would draw several bars.

Left out: its other warnings, which stay, and weights that are missing, on which `engine.models.loading` insists itself.
Called by it, by `engine.models.packaged`, and by rooms that save what they have trained.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any


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


def save_model(model: Any, tokenizer: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Write a model and its tokenizer, None for none, as a Hugging Face directory.

    `weights` stand in for the model's own.
    """
    # Saving imports DeepSpeed, whose logger takes stdout for its own; that is where a job's result belongs.
    with quiet_loading(), redirect_stdout(io.StringIO()):
        model.save_pretrained(folder, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    for weight in folder.glob("*.safetensors"):  # written for its owner alone; what is published is for all
        weight.chmod(0o644)


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in str(record.msg)
