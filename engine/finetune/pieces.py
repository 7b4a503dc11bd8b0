"""What an optimiser holds, parameter by parameter: written by some workers, read by any number of others.

DeepSpeed lays parameters end to end and cuts them among the workers, differently for every ZeRO stage and number of
workers. Files hold pieces that know their place instead (`model.norm.weight@128.exp_avg`: from element 128 on), so
whoever reads them takes what overlaps with its own. The idea is that of DeepSpeed's universal checkpoints, without
the conversion in between.

Left out: when state is written and where (`engine.finetune.checkpoints`). Called by `engine.finetune.learner`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PART = "worker-"
"""How the names of the files begin."""
AVERAGES = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of every element."""
MASTER = "master"
"""The weight itself at full precision, where the model has it at less."""
_STEPS = "steps"


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + size` of a parameter laid flat; `master`, which the optimiser works on, has them
    from `at` on."""

    name: str
    start: int
    size: int
    master: Any
    at: int = 0

    def of(self, tensor: Any) -> Any:
        """The piece's elements of a tensor shaped like the master: a view (size,)."""
        return tensor.view(-1)[self.at : self.at + self.size]


def pieces_of(engine: Any, optimiser: Any) -> Iterator[Piece]:
    """All that this worker's optimiser works on, under DeepSpeed; `optimiser` is torch's, inside of it."""
    import torch

    stage, inner = engine.zero_optimization_stage(), engine.optimizer
    names = {id(each): name for name, each in engine.module.named_parameters()}
    if stage == 3:
        rank = torch.distributed.get_rank()
        for group, flat in zip(inner.fp16_groups, inner.fp32_partitioned_groups_flat, strict=True):
            at = 0
            for each in group:
                share = each.partition_numel()
                start = rank * share
                if (size := min(share, each.ds_numel - start)) > 0:  # the last workers' shares may be padding
                    yield Piece(names[id(each)], start, size, flat, at)
                at += share
    elif stage:
        for group, flat in zip(inner.bit16_groups, inner.single_partition_of_fp32_groups, strict=True):
            for each in group:
                if link := each._hp_mapping:  # none where other workers hold all of it
                    here, there = link.lp_fragment_address, link.hp_fragment_address
                    yield Piece(names[id(each)], here.start, here.numel, flat, there.start)
    else:
        ours = getattr(inner, "fp16_groups", None)  # with bfloat16 the optimiser works on copies
        for number, group in enumerate(optimiser.param_groups):
            for each, master in zip(ours[number] if ours else group["params"], group["params"], strict=True):
                yield Piece(names[id(each)], 0, each.numel(), master)


def save_pieces(path: Path, pieces: Iterator[Piece], optimiser: Any, steps: int, *, masters: bool) -> None:
    """Write what AdamW knows of some pieces, and with `masters` their weights."""
    from safetensors.torch import save_file

    tensors = {}
    for piece in pieces:
        state = optimiser.state[piece.master]
        held = {name: state[name] for name in AVERAGES} | ({MASTER: piece.master} if masters else {})
        for name, tensor in held.items():
            tensors[f"{piece.name}@{piece.start}.{name}"] = piece.of(tensor.detach()).cpu().contiguous().clone()
    save_file(tensors, path, metadata={_STEPS: str(steps)})


def load_pieces(paths: Sequence[Path], pieces: Iterator[Piece], optimiser: Any, *, masters: bool) -> int:
    """Fill AdamW's state, and with `masters` the weights where they were written; the number of steps.

    Raises `KeyError` for an element that no file has, and what safetensors raises for damage.
    """
    import torch
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        places: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        for file in files:
            for key in file.keys():  # noqa: SIM118, for it is no dictionary
                parameter, _, rest = key.rpartition("@")
                start, _, kind = rest.partition(".")
                places.setdefault((parameter, kind), []).append((int(start), file.get_slice(key)))
        steps = int(files[0].metadata()[_STEPS])
        kinds = AVERAGES + ((MASTER,) if masters and any(kind == MASTER for _, kind in places) else ())
        for piece in pieces:
            state = optimiser.state[piece.master]
            state["step"] = torch.tensor(float(steps), device=piece.master.device)
            for kind in kinds:
                if kind != MASTER and kind not in state:
                    state[kind] = torch.zeros_like(piece.master, requires_grad=False)
                _fill(piece, piece.of(piece.master.detach() if kind == MASTER else state[kind]), kind, places)
        return steps


def _fill(piece: Piece, target: Any, kind: str, places: dict[tuple[str, str], list[tuple[int, Any]]]) -> None:
    """Copy what files have of a piece."""
    filled = 0
    for start, saved in places.get((piece.name, kind), ()):
        first = max(start, piece.start)
        last = min(start + saved.get_shape()[0], piece.start + piece.size)
        if first < last:
            target[first - piece.start : last - piece.start] = saved[first - start : last - start].to(target.device)
            filled += last - first
    if filled != piece.size:
        raise KeyError(f"{filled:,} of {piece.size:,} elements of {piece.name} are there")
