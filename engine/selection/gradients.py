"""Margins, projected gradients and representations of examples at the meta-initialisation, in actors of Ray.

An actor holds the model with its adapter and describes examples, many in a packed row: forward, backward, and for each
the gradient of the mean margin of its answer's tokens, projected to some hundred numbers. What it has found goes into a
feature cache under the example's tokens, so a run that was killed goes on from there and another one on the same model
computes nothing.

Left out: what is made of it (`engine.selection.estimates`) and who trained the model (`engine.selection.job`).

Shapes: n examples, p trained parameters, d projected numbers, w the model's width.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from engine.artifacts import read_dataset
from engine.cluster import answer, first_answer
from engine.corpus import FeatureCache
from engine.errors import SourceError
from engine.finetune.attention import keeps_apart
from engine.finetune.batches import Row, make_row, next_token_losses
from engine.finetune.checkpoints import Checkpoints
from engine.finetune.formats import Example
from engine.finetune.packing import pack
from engine.finetune.recipe import FineTuningRecipe
from engine.finetune.sft import FineTuning
from engine.finetune.store import TokenStore
from engine.finetune.tokenise import tokenizer_for
from engine.observe import Progress
from engine.selection.margins import answer_lengths, example_margins
from engine.selection.per_example import ExampleGradients, NotDivided
from engine.selection.projection import Projection

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
_GROUP_BYTES = 256 << 20
"""Gradients are projected together up to this size."""
_CHUNK = 32
"""Examples of a task of Ray: some seconds of work."""
_WAITED: dict[str, Any] = {
    "who": "An actor that computes gradients",
    "task": f"describe {_CHUNK} examples",
    "key": "stall_seconds",
}


@dataclass(frozen=True)
class Meta:
    """The meta-initialisation: the recipe it was trained by, its run, the step whose weights are meant, the dataset of
    tokens, and a hash of all that its gradients depend on."""

    recipe: FineTuningRecipe
    home: str
    step: int
    tokens: str
    fingerprint: str


@dataclass(frozen=True)
class Described:
    """What is known of n examples."""

    margins: Floats
    """At the meta-initialisation, (n,)."""
    base_margins: Floats
    """Of the model before any training, (n,)."""
    gradients: Floats
    """(n, d)."""
    representations: Floats
    """Mean over the answer of what the head is given, (n, w)."""


class Describers:
    """Actors that hold the meta-initialisation, as many as the recipe has training workers, for the length of a `with`
    block, with Ray up.

    `width` are the projected numbers. Methods raise `SourceError` for an example without a gradient,
    `DeadlineExceeded` where nothing comes for `stall_seconds`, `HeadraceError` where an actor died too often.
    """

    def __init__(self, meta: Meta, *, width: int, seed: int, stall_seconds: float) -> None:
        self._meta, self._width, self._seed, self._stall = meta, width, seed, stall_seconds
        self._actors: list[Any] = []

    def __enter__(self) -> "Describers":
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Give back what the actors hold; the next call starts them anew."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _awake(self) -> list[Any]:
        import ray

        if not self._actors:
            parallel = self._meta.recipe.parallel
            make = ray.remote(num_cpus=parallel.cpus, num_gpus=parallel.gpus, max_restarts=3, max_task_retries=3)(
                _Describer
            )
            self._actors = [make.remote(self._meta, self._width, self._seed) for _ in range(parallel.workers)]
        return self._actors

    def describe(self, numbers: Sequence[int]) -> Described:
        """Describe examples of the dataset of tokens, by their numbers."""
        chunks = [list(numbers[at : at + _CHUNK]) for at in range(0, len(numbers), _CHUNK)]
        found: dict[int, Floats] = {}
        with Progress("gradients", len(numbers), "examples") as progress:
            free, left = list(self._awake()), deque(range(len(chunks)))
            pending: dict[Any, tuple[Any, int]] = {}
            while left or pending:
                while free and left:
                    actor, at = free.pop(), left.popleft()
                    pending[actor.describe.remote(chunks[at])] = (actor, at)
                reference, values = first_answer(list(pending), self._stall, **_WAITED)
                actor, at = pending.pop(reference)
                free.append(actor)
                found[at] = values
                progress.advance(len(chunks[at]))
        rows, ends = np.concatenate([found[at] for at in range(len(chunks))]), 2 + self._width
        return Described(rows[:, 0], rows[:, 1], rows[:, 2:ends], rows[:, ends:])

    def length(self) -> float:
        """Length of the trained parameters, in projected numbers: |theta| sqrt(d / p)."""
        return float(answer(self._awake()[0].length.remote(), self._stall, **_WAITED))

    def along(
        self, numbers: Sequence[int], weights: npt.NDArray[Any], target: Sequence[int], shares: Sequence[float]
    ) -> npt.NDArray[np.float64]:
        """True margins of target examples, (shares, target), after shares of the step sum_i weight_i g_i."""
        call = self._awake()[0].along.remote(list(numbers), weights, list(target), list(shares))
        return np.asarray(answer(call, self._stall, **_WAITED | {"task": "step along a sum of gradients"}))


class _Describer:
    """The actor."""

    def __init__(self, meta: Meta, width: int, seed: int) -> None:
        import torch

        recipe = meta.recipe
        torch.set_num_threads(max(1, int(recipe.parallel.cpus)))
        self._store = TokenStore.of(read_dataset(UPath(meta.tokens)))
        tokenizer = tokenizer_for(recipe.model, recipe.format, recipe.tokens)
        task = FineTuning(
            self._store, recipe.model, tokenizer, recipe.parallel.tokens_per_device,
            dtype=recipe.training.dtype, lora=recipe.lora,
        )  # fmt: skip
        with Checkpoints(UPath(meta.home)).weights(meta.step) as weights:
            self._model = task.load(weights).eval()
        self._device = "cuda" if torch.cuda.is_available() and recipe.parallel.gpus else "cpu"
        self._model.to(self._device)
        self._gradients = ExampleGradients(self._model)
        self._trained = self._gradients.parameters
        self._capacity = recipe.parallel.tokens_per_device if keeps_apart(self._model) else 0
        self._projection = Projection(sum(each.numel() for each in self._trained), width, seed)
        self._cache = FeatureCache(
            UPath(meta.home) / "gradients",
            encoder=hashlib.sha256(json.dumps([meta.fingerprint, width, seed]).encode()).hexdigest()[:16],
            layer=-1,
            pooling="first",
            dtype="float32",
            max_tokens=recipe.tokens.window,
        )

    def describe(self, numbers: Sequence[int]) -> Floats:
        """One row per example: margin, margin of the base, projected gradient, representation, (n, 2 + d + w)."""
        texts = [_text(self._store[number]) for number in numbers]
        found = self._cache.features(texts, self._compute)
        self._cache.flush()
        return np.stack(found)

    def length(self) -> float:
        """See `Describers.length`."""
        squares = sum(float(each.detach().double().square().sum()) for each in self._trained)
        return float(np.sqrt(squares * self._projection.width / self._projection.parameters))

    def along(
        self, numbers: Sequence[int], weights: npt.NDArray[Any], target: Sequence[int], shares: Sequence[float]
    ) -> npt.NDArray[np.float64]:
        """See `Describers.along`."""
        import torch

        total = [torch.zeros_like(each) for each in self._trained]
        for places, row in self._rows([self._store[number] for number in numbers]):
            pull = (_margins(self._model, row) * torch.from_numpy(weights[places]).to(self._device)).sum()
            for each, gradient in zip(total, torch.autograd.grad(pull, self._trained, allow_unused=True), strict=True):
                each.add_(0.0 if gradient is None else gradient)
        asked = list(self._rows([self._store[number] for number in target]))
        kept = [each.detach().clone() for each in self._trained]
        found = []
        with torch.no_grad():
            for share in shares:
                for each, start, step in zip(self._trained, kept, total, strict=True):
                    each.copy_(start + share * step)
                found.append(np.empty(len(target)))
                for places, row in asked:
                    found[-1][places] = _margins(self._model, row).cpu().numpy()
            for each, start in zip(self._trained, kept, strict=True):
                each.copy_(start)
        return np.array(found)

    def _rows(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], Row]]:
        """Examples in packed rows, and their places among them."""
        lengths = [len(each.ids) for each in examples]
        apart = [[at] for at in range(len(examples))]
        for places in pack(lengths, max(self._capacity, *lengths)) if self._capacity else apart:
            yield places, make_row([examples[at] for at in places]).to(self._device)

    def _compute(self, texts: Sequence[str]) -> list[Floats]:
        group = max(1, _GROUP_BYTES // (4 * self._projection.parameters))
        examples = [_example(text) for text in texts]
        return [
            row for start in range(0, len(examples), group) for row in self._described(examples[start : start + group])
        ]

    def _described(self, examples: Sequence[Example]) -> Floats:
        """What is known of some examples, (n, 2 + d + w)."""
        found: dict[int, tuple[Floats, Floats, Floats]] = {}
        try:
            for places, row in self._rows(examples):
                found |= zip(places, zip(*self._of_row(row), strict=True), strict=True)
        except NotDivided:
            self._capacity = 0
            return self._described(examples)
        margins, gradients, representations = map(
            np.stack, zip(*(found[at] for at in range(len(examples))), strict=True)
        )
        for example, of_it, gradient in zip(examples, margins, gradients, strict=True):
            if not (np.isfinite(of_it).all() and np.isfinite(gradient).all()):
                raise SourceError(
                    f"An example of {len(example.ids)} tokens has a margin or a gradient that is no number (it begins"
                    f" with the tokens {example.ids[:8]}).",
                    "Lower optimiser.learning_rate, or look at the meta-training's metrics.",
                )
        return np.hstack([margins, self._projection.project(gradients), representations])

    def _of_row(self, row: Row) -> tuple[Floats, Floats, Floats]:
        """The two margins (n, 2), gradients (n, p) and representations (n, w) of a row's examples."""
        import torch

        with torch.no_grad(), self._model.disable_adapter():
            base = _margins(self._model, row)
        with _heard(self._model) as heard:
            margins, gradients = self._gradients(row, _margins)
        answers = torch.split(heard[0].detach().float().flatten(0, -2), answer_lengths(row))
        representations = torch.stack([each.mean(0) for each in answers])
        return torch.stack([margins, base], 1).cpu().numpy(), gradients.numpy(), representations.cpu().numpy()


def _margins(model: Any, row: Row) -> "torch.Tensor":
    """Mean margins of a row's examples, (n,)."""
    return example_margins(next_token_losses(model, row), row)


@contextmanager
def _heard(model: Any) -> Iterator[list[Any]]:
    """What the head is given, for the length of a `with` block."""
    found: list[Any] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        handle.remove()


def _text(example: Example) -> str:
    """An example as the feature cache knows it."""
    return json.dumps([example.ids, example.loss])


def _example(text: str) -> Example:
    ids, loss = json.loads(text)
    return Example(ids, [tuple(each) for each in loss])
