"""Supervised fine-tuning as a task of the loop: next-token loss on packed rows of token examples.

Left out: how rows became tokens (`engine.finetune.tokenise`). Called by `engine.finetune.job`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.finetune.attention import keeps_apart, use_packed_attention
from engine.finetune.batches import Row, next_token_loss
from engine.finetune.learner import Learner
from engine.finetune.loop import LOSS, Portion
from engine.finetune.lora import merged, save_adapter, with_adapter
from engine.finetune.options import LoraOptions
from engine.finetune.order import Indices
from engine.finetune.rows import PackedExamples
from engine.finetune.store import TokenStore
from engine.models import load_causal_lm, load_tokenizer, save_model
from engine.observe import get_logger

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_log = get_logger("finetune")
_PAD_TO = 16
"""An embedding grows to a multiple of this."""


class FineTuning:
    """Trains a causal LM on the examples of a store; `capacity` are the tokens of a micro-batch."""

    def __init__(
        self,
        store: TokenStore,
        model: str,
        tokenizer: "PreTrainedTokenizerBase",
        capacity: int,
        *,
        dtype: str = "float32",
        lora: LoraOptions | None = None,
        recompute: bool = False,
    ) -> None:
        self.examples = len(store.train)
        self._examples, self._model, self._tokenizer = PackedExamples(store, capacity), model, tokenizer
        self._dtype, self._lora, self._recompute = dtype, lora, recompute

    def portion(self, step: int, indices: Indices, epochs: Indices, rank: int, workers: int) -> Portion:
        """See `Task`."""
        return self._examples.drawn(indices, epochs, rank, workers)

    def row_loss(self, model: Any, row: Row) -> "torch.Tensor":
        """See `Task`."""
        return next_token_loss(model, row)

    def measure(self, learner: Learner) -> dict[str, float]:
        """See `Task`: nats per token with loss."""
        import torch

        portion = self._examples.held_out(torch.distributed.get_rank(), learner.workers)
        return {LOSS: learner.mean_loss(portion.rows, portion.weight, self.row_loss)} if portion else {}

    def load(self, weights: Path | None) -> Any:
        """See `Task`."""
        from engine.finetune.head import use_loss_head

        if weights and not self._lora:
            model = load_causal_lm(str(weights), self._dtype)
        else:
            model = load_causal_lm(self._model, self._dtype)
            new = grow(model, self._tokenizer, load_tokenizer(self._model))
            if self._lora:
                model = with_adapter(model, self._lora, new_tokens=new, head=[], saved=weights)
        use_loss_head(use_packed_attention(model))
        self._examples.apart = keeps_apart(model)
        if not self._examples.apart:
            _log.info("each example has a row of its own: %s would let them see each other", type(model).__name__)
        if self._recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    def save(self, model: Any, weights: dict[str, Any], folder: Path) -> None:
        """See `Task`."""
        if self._lora:
            save_adapter(model, weights, folder)
        else:
            save_model(model, self._tokenizer, folder, weights)

    def export(self, weights: Path, folder: Path) -> None:
        """See `Task`: an ordinary Hugging Face directory, an adapter merged."""
        model = self.load(weights)
        save_model(merged(model) if self._lora else model, self._tokenizer, folder)


def grow(model: Any, tokenizer: "PreTrainedTokenizerBase", known: "PreTrainedTokenizerBase") -> list[int]:
    """Give every token of the tokenizer a row of the embedding; the ids of those that the `known` one had not.

    A new token starts as the mean of the others, so that the same model comes out each time.
    """
    import torch

    rows = model.get_input_embeddings().num_embeddings
    new = sorted(set(tokenizer.get_vocab().values()) - set(known.get_vocab().values()))
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=_PAD_TO, mean_resizing=False)
    if new:
        tables = {id(each): each for each in (model.get_input_embeddings(), model.get_output_embeddings())}
        with torch.no_grad():
            for each in filter(None, tables.values()):
                mean = each.weight[: min(rows, new[0])].float().mean(0).to(each.weight.dtype)
                each.weight[[*new, *range(max(rows, new[-1]), len(each.weight))]] = mean
    return new
