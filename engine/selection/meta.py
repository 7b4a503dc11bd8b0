"""Meta-training: supervised fine-tuning on all candidate tasks, measured on the target as the estimates measure it.

Beside the loss per token it gives `margin_loss`, the mean over examples of log(1 + exp(-margin)), by which a step's
length is told (`engine.selection.estimator`). Left out: the loop (`engine.finetune.loop`). Called inside the training
workers, for `engine.selection.job`.

Shapes: L tokens with loss of a row, n examples in it.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.finetune.batches import Row, next_token_losses
from engine.finetune.learner import Learner
from engine.finetune.loop import LOSS, Task
from engine.finetune.rows import PackedExamples
from engine.finetune.sft import FineTuning
from engine.finetune.store import TokenStore
from engine.finetune.work import Assignment
from engine.selection.margins import answer_lengths, example_margins, losses_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MARGIN_LOSS = "margin_loss"


def meta_task(assignment: Assignment, store: TokenStore, tokenizer: "PreTrainedTokenizerBase", steps: int) -> Task:
    """The task of a meta-training."""
    recipe = assignment.recipe
    return MetaTraining(
        store,
        recipe.model,
        tokenizer,
        recipe.parallel.tokens_per_device,
        dtype=recipe.training.dtype,
        lora=recipe.lora,
        recompute=recipe.parallel.recompute,
    )


class MetaTraining(FineTuning):
    """Fine-tuning that also measures margins."""

    def __init__(self, store: TokenStore, *arguments: Any, **options: Any) -> None:
        super().__init__(store, *arguments, **options)
        self._held_out = [int(each) for each in store.held_out[:, 0]]

    def measure(self, learner: Learner) -> dict[str, float]:
        """See `Task`: nats per token with loss, and the mean loss of the examples' margins."""
        import torch

        portion = self._examples.held_out(torch.distributed.get_rank(), learner.workers)
        if portion is None:
            return {}
        found = measured(learner, self._examples, self._held_out)
        return {LOSS: float(found[1].sum() / portion.weight), MARGIN_LOSS: float(losses_of(found[0]).mean())}


def measured(learner: Learner, examples: PackedExamples, numbers: list[int]) -> Any:
    """Margin and summed loss (nats) of each of these examples, over all workers, (2, number of examples)."""
    import torch

    rows = list(examples.of(numbers, torch.distributed.get_rank(), learner.workers).rows)
    at = {number: place for place, number in enumerate(numbers)}
    places = [[at[each] + offset for offset in (0, len(numbers)) for each in row.numbers] for row in rows]
    return np.reshape(learner.gathered(rows, places, 2 * len(numbers), margins_and_losses), (2, len(numbers)))


def margins_and_losses(model: Any, row: Row) -> "torch.Tensor":
    """Mean margins of a row's examples, then the sums of their losses, (2n,)."""
    import torch

    losses_L = next_token_losses(model, row)
    counts = answer_lengths(row)
    if not sum(counts):  # a row that stands for none
        return torch.zeros(0)
    sums = torch.stack([part.double().sum() for part in torch.split(losses_L, counts)])
    return torch.cat([example_margins(losses_L, row), sums])
