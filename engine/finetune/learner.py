"""One worker's part of an optimiser step, under DeepSpeed: whatever the rows, the step's loss is that of its examples.

A step is a list of rows (`engine.finetune.packing`); each worker runs its own, one after the other, and DeepSpeed
exchanges gradients after the last. A token's loss is divided by the tokens of the whole step, on all workers, so
neither packing nor the number of workers changes the gradient beyond rounding. What the loss of a row is, the caller
says: this module is blind to the algorithm.

Left out: which rows (`engine.finetune.loop`) and where checkpoints go (`engine.finetune.checkpoints`). Called inside
Ray Train's workers, or in any process of its own.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError
from engine.finetune.options import OptimiserOptions, ParallelOptions
from engine.finetune.pieces import PART, load_pieces, pieces_of, save_pieces

_BUCKET_BYTES = 256 << 20
"""Bytes of weights that ZeRO 3 puts together at a time."""
_COMPILED = "deepspeed_shm_comm"
"""An extension for inference that DeepSpeed would compile when it is first started on a machine."""

RowLoss = Callable[[Any, Any], Any]
"""Model and row -> the sum of the losses of the row's tokens, a scalar tensor."""


@dataclass(frozen=True)
class Stepped:
    """What a step has come to, the same on every worker."""

    loss: float
    """Mean over the step's tokens."""
    gradient_norm: float
    learning_rate: float


class Learner:
    """A model under training; `total_steps` shape the learning rate. Needs an initialised process group.

    Where several are trained side by side, `name` tells their files apart.
    """

    def __init__(
        self,
        model: Any,
        optimiser: OptimiserOptions,
        parallel: ParallelOptions,
        total_steps: int,
        *,
        bf16: bool = False,
        name: str = "",
    ) -> None:
        import deepspeed
        import torch

        self._options, self._total, self._name = optimiser, total_steps, name
        self.workers = torch.distributed.get_world_size()
        self.steps = 0
        trained = [each for each in model.parameters() if each.requires_grad]
        groups = [
            {"params": [each for each in trained if each.ndim > 1], "weight_decay": optimiser.weight_decay},
            {"params": [each for each in trained if each.ndim <= 1], "weight_decay": 0.0},
        ]
        # As fast as DeepSpeed's own on CPUs, and nothing has to be compiled on the user's machine.
        self._optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]], optimiser.learning_rate, optimiser.betas, fused=True
        )
        deepspeed.ops.__compatible_ops__[_COMPILED] = False
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self._optimiser,
            config=_settings(optimiser, parallel, bf16),
            dist_init_required=False,
        )
        if self.workers == 1 and not parallel.zero:
            # There is nobody to exchange gradients with, and copying them together for it takes a tenth of a step.
            self.engine.enable_backward_allreduce = False

    @property
    def device(self) -> Any:
        """Where rows have to be."""
        return self.engine.device

    def step(self, rows: Sequence[Any], tokens: int, row_loss: RowLoss) -> Stepped:
        """One optimiser step; `rows` are this worker's, as many as every other's, `tokens` those of all workers.

        Raises `HeadraceError` where the loss or the gradient is no number: nothing of that step is ever saved.
        """
        import torch

        rate = learning_rate(self._options, self.steps, self._total)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self.engine.train()
        total = torch.zeros((), device=self.device)
        for number, row in enumerate(rows):
            self.engine.set_gradient_accumulation_boundary(number == len(rows) - 1)
            loss = row_loss(self.engine, row.to(self.device))
            total += loss.detach()
            if number == len(rows) - 1:
                torch.distributed.all_reduce(total)
                if not torch.isfinite(total):
                    raise self._no_number("loss", total.item())
            # DeepSpeed averages over workers, and each of them counts its share of the step's tokens.
            self.engine.backward(loss * (self.workers / tokens), scale_wrt_gas=False)
            norm = self._norm() if number == len(rows) - 1 else None
            if norm is not None and not math.isfinite(norm):
                raise self._no_number("gradient", norm)
            self.engine.step()
        if norm is None:  # with ZeRO the gradients are in pieces, and DeepSpeed puts their norm together
            norm = float(self.engine.get_global_grad_norm())
            if not math.isfinite(norm):
                raise self._no_number("gradient", norm)
        self.steps += 1
        return Stepped(total.item() / tokens, norm, rate)

    def _no_number(self, what: str, value: float) -> HeadraceError:
        return HeadraceError(
            f"The {what} of step {self.steps + 1} is {value:g}.",
            "Lower optimiser.learning_rate, or look at that step's examples; the last checkpoint stays.",
        )

    def _norm(self) -> float | None:
        """Norm of the gradient before it is clipped; None with ZeRO."""
        import torch

        if self.engine.zero_optimization_stage():
            return None
        gradients = [each.grad for each in self.engine.module.parameters() if each.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def mean_loss(self, rows: Sequence[Any], tokens: int, row_loss: RowLoss) -> float:
        """The loss of rows nobody learns from, over all workers; as in `step`."""
        import torch

        self.engine.eval()
        total = torch.zeros((), device=self.device)
        with torch.no_grad():
            for row in rows:
                total += row_loss(self.engine, row.to(self.device))
        torch.distributed.all_reduce(total)
        return float(total.item() / max(tokens, 1))

    def gathered(
        self, rows: Sequence[Any], places: Sequence[Sequence[int]], size: int, values: Callable[[Any, Any], Any]
    ) -> Any:
        """An array (size,) of float64: `values(model, row)` of this worker's rows and of all others', each number at
        its place; a place that no row has is 0."""
        import numpy as np
        import torch

        found = torch.zeros(size, dtype=torch.float64, device=self.device)
        self.engine.eval()
        with torch.no_grad():
            for row, where in zip(rows, places, strict=True):
                # Also where nothing is to be had: with ZeRO 3 every worker takes part in every forward pass.
                some = values(self.engine, row.to(self.device))
                if where:
                    found[torch.tensor(where, device=self.device)] = some.double()
        torch.distributed.all_reduce(found)
        return np.asarray(found.cpu())

    def weights(self, names: Collection[str] | None = None) -> dict[str, Any] | None:
        """Weights by name, all of them if not told, on the first worker (None elsewhere); every worker calls it."""
        import deepspeed
        import torch

        first = torch.distributed.get_rank() == 0
        held = self.engine.module.state_dict(keep_vars=True)
        wanted = {name: each for name, each in held.items() if names is None or name in names}
        if self.engine.zero_optimization_stage() != 3:
            return {name: each.detach() for name, each in wanted.items()} if first else None
        copies: dict[int, Any] = {}
        for bucket in _buckets({id(each): each for each in wanted.values()}):  # what is tied is one
            with deepspeed.zero.GatheredParameters([each for each in bucket.values() if hasattr(each, "ds_id")]):
                if first:
                    copies |= {key: each.detach().to("cpu", copy=True) for key, each in bucket.items()}
        return {name: copies[id(each)] for name, each in wanted.items()} if first else None

    def save(self, folder: Path) -> None:
        """Write what the weights do not tell, each worker its part: the optimiser's averages, the weights at full
        precision where they have it nowhere else, the number of steps. The weights are the caller's to write."""
        import torch

        if self._shared or torch.distributed.get_rank() == 0:  # otherwise all hold the same
            pieces = pieces_of(self.engine, self._optimiser)
            save_pieces(folder / self.part, pieces, self._optimiser, self.steps, masters=self._copies)

    def load(self, folder: Path) -> None:
        """Go on exactly where `save` was called, on however many workers and with whichever ZeRO stage; the model this
        was made with holds the weights of then. Raises `HeadraceError` for what is no such state."""
        from safetensors import SafetensorError

        own = folder / self.part
        paths = [own] if own.exists() else sorted(folder.glob(f"{PART}{self._name}[0-9]*"))
        try:
            pieces = pieces_of(self.engine, self._optimiser)
            self.steps = load_pieces(paths, pieces, self._optimiser, masters=self._copies)
        except (OSError, SafetensorError, LookupError, RuntimeError, ValueError) as error:
            why = str(error).strip().partition("\n")[0][:200]
            raise HeadraceError(
                f"The training state in {folder} does not belong to this training ({why}).",
                "Choose another name=..., or add --fresh to start over.",
            ) from error

    @property
    def part(self) -> str:
        """The file this worker's state goes to: whichever training writes one of this name cuts as this one does."""
        import torch

        rank, workers = (torch.distributed.get_rank(), self.workers) if self._shared else (0, 1)
        return f"{PART}{self._name}{rank:05d}-of-{workers:05d}-zero-{self.engine.zero_optimization_stage()}.safetensors"

    @property
    def _shared(self) -> bool:
        """Whether each worker's optimiser has a share of the work, rather than all of it."""
        return bool(self.engine.zero_optimization_stage())

    @property
    def _copies(self) -> bool:
        """Whether the optimiser works on copies of the weights."""
        return bool(self._shared or self.engine.bfloat16_enabled())


def _buckets(tensors: Mapping[int, Any]) -> Iterator[dict[int, Any]]:
    """Tensors in groups of some size; by the size that ZeRO 3 has cut from (`ds_numel`), as their own is 0 there."""
    bucket: dict[int, Any] = {}
    size = 0
    for key, each in tensors.items():
        own = getattr(each, "ds_numel", each.numel()) * each.element_size()
        if bucket and size + own > _BUCKET_BYTES:
            yield bucket
            bucket, size = {}, 0
        bucket[key] = each
        size += own
    if bucket:
        yield bucket


def learning_rate(options: OptimiserOptions, step: int, total: int) -> float:
    """The rate of a step, counted from 0: a line up to the peak, then down to `final` of it at the last."""
    rise = round(options.warm_up * total)
    if step < rise:
        return options.learning_rate * (step + 1) / rise
    if options.schedule == "constant":
        return options.learning_rate
    done = (step - rise) / max(total - 1 - rise, 1)
    left = 1 - done if options.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return options.learning_rate * (options.final + (1 - options.final) * max(left, 0.0))


def _settings(optimiser: OptimiserOptions, parallel: ParallelOptions, bf16: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": parallel.zero}
    if parallel.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if parallel.offload == "all" and parallel.zero == 3:
        zero["offload_param"] = {"device": "cpu"}
    return {
        # How many rows a step takes varies, so the learner says itself where one ends.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimiser.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
    }
