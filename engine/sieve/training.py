"""Training a student on all labels so far: the whole encoder anew from its checkpoint, or a head on frozen features.

    encoder    AdamW, focal loss weighted by the imbalance of the random warm start, warm-up and linear decay; always
               from the pre-trained weights, so that nothing early is forgotten and nothing late counts more
    frozen     L-BFGS on a convex loss over cached features, weighted by the labels' own imbalance

Either way a cross-fit gives each label a score from a student that has not seen it; from these and the stream's scores
comes the calibration (`engine.sieve.calibration`) and with it the threshold. Left out: which snippets are labelled
(`engine.sieve.loop`), and more than one training worker (`engine.sieve.distributed`). Called by the student actors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine.corpus import FeatureCache
from engine.corpus.features import drop_tokens, with_noise
from engine.models import fingerprint, resolve
from engine.sieve.calibration import Calibration, calibrate, out_of_fold, sigmoid
from engine.sieve.encoder import Batch, Encoder
from engine.sieve.losses import class_weight, focal_loss
from engine.sieve.options import StudentOptions
from engine.sieve.student import Card, Head, Student
from engine.sieve.threshold import Bools, Floats, balanced_threshold, confusion

_COPIES = 4
"""Times a label's features are read for training where reading adds noise or drops tokens."""
_WEIGHT, _BIAS = "<head weight>", "<head bias>"
"""Names that no parameter of an encoder has."""
_WARM_UP = 0.1
"""Share of the optimiser steps over which the learning rate rises."""


@dataclass(frozen=True)
class Labelled:
    """Labels so far: texts, whether each passes, and the pass rate of the random warm start (alpha's source)."""

    texts: Sequence[str]
    labels: Bools
    warm_rate: float


@dataclass(frozen=True)
class Fitted:
    """What a training gives: how the student's scores are to be read, and how well it did on labels it had not seen."""

    calibration: Calibration
    threshold: float
    unseen_accuracy: float
    """Balanced accuracy of the cross-fitted scores at their best cut, over the labels as they were asked for."""


State = dict[str, np.ndarray]
"""Trained weights by name, the head's among them."""


class Trainer(Protocol):
    """Trains on labels, then scores; the two kinds of student differ in nothing else."""

    def fit(self, labelled: Labelled, seed: int) -> None:
        """Train on these labels from the start."""

    def logits(self, texts: Sequence[str]) -> Floats:
        """Logits of snippets, (n,), from what was trained (or restored) last."""

    def state(self) -> State:
        """What was trained, to be restored elsewhere."""

    def restore(self, state: State) -> None:
        """Take over what another trainer of the same options has trained."""

    def student(self, card: Card) -> Student:
        """What was trained as a student of its own."""


class FrozenTrainer:
    """A head on frozen features; `cache` keeps them for the next training, and for other processes once flushed."""

    def __init__(self, options: StudentOptions, cache: FeatureCache | None) -> None:
        self._options = options
        self._encoder = Encoder(options.model, max_tokens=options.max_tokens, pooling=options.pooling)
        self._cache = cache
        self._every_token = options.token_drop > 0
        self._head = Head(np.zeros(self._encoder.width), 0.0)

    def fit(self, labelled: Labelled, seed: int) -> None:
        """See `Trainer`."""
        options, rng = self._options, np.random.default_rng(seed)
        read = self._features(labelled.texts)
        augmented = options.noise > 0 or self._every_token
        copies = [self._read(read, rng) for _ in range(_COPIES)] if augmented else [self._pool(read)]
        labels = np.tile(labelled.labels, len(copies))
        alpha = class_weight(int(labels.sum()), len(labels))
        self._head = _fit_head(np.concatenate(copies), labels, alpha, options.gamma or 0.0, options.l2)

    def logits(self, texts: Sequence[str]) -> Floats:
        """See `Trainer`."""
        return self._head.logits(self._pool(self._features(texts)))

    def state(self) -> State:
        """See `Trainer`."""
        return {_WEIGHT: self._head.weight, _BIAS: np.array([self._head.bias])}

    def restore(self, state: State) -> None:
        """See `Trainer`."""
        self._head = Head(state[_WEIGHT], float(state[_BIAS][0]))

    def student(self, card: Card) -> Student:
        """See `Trainer`."""
        return Student(self._encoder, self._head, card)

    def _features(self, texts: Sequence[str]) -> list[Floats]:
        if not self._cache:
            return self._encoder.features(texts, every_token=self._every_token)
        return self._cache.features(texts, lambda new: self._encoder.features(new, every_token=self._every_token))

    def _read(self, features: list[Floats], rng: np.random.Generator) -> Floats:
        options = self._options
        if self._every_token:
            pooled = np.stack([drop_tokens(each, options.token_drop, rng) for each in features])
        else:
            pooled = self._pool(features)
        return with_noise(pooled, options.noise, rng) if options.noise else pooled

    def _pool(self, features: list[Floats]) -> Floats:
        if not features:
            return np.empty((0, self._encoder.width), np.float32)
        return np.stack([each.mean(0) if each.ndim == 2 else each for each in features]).astype(np.float32)


class EncoderTrainer:
    """The whole encoder with its head, fine-tuned anew each time."""

    def __init__(self, options: StudentOptions) -> None:
        self._options = options
        self._encoder = Encoder(options.model, max_tokens=options.max_tokens, pooling=options.pooling)
        state = self._encoder.module.state_dict()
        self._pretrained = {name: tensor.clone() for name, tensor in state.items()}
        self._head = Head(np.zeros(self._encoder.width), 0.0)

    def fit(self, labelled: Labelled, seed: int) -> None:
        """See `Trainer`."""
        self._encoder.module.load_state_dict(self._pretrained)
        if self._options.workers > 1:
            from engine.sieve.distributed import fine_tune_on_many

            self.restore(fine_tune_on_many(labelled, self._options, seed))
        else:
            self._head = fine_tune(self._encoder, labelled, self._options, seed)

    def logits(self, texts: Sequence[str]) -> Floats:
        """See `Trainer`."""
        return self._head.logits(self._encoder.features(texts))

    def state(self) -> State:
        """See `Trainer`."""
        return state_of(self._encoder, self._head)

    def restore(self, state: State) -> None:
        """See `Trainer`."""
        import torch

        self._head = Head(state[_WEIGHT], float(state[_BIAS][0]))
        # Arrays out of Ray's object store may not be written to; loading copies them.
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items() if name[0] != "<"}
        self._encoder.module.load_state_dict(tensors)

    def student(self, card: Card) -> Student:
        """See `Trainer`."""
        return Student(self._encoder, self._head, card)


def make_trainer(options: StudentOptions, cache: FeatureCache | None = None) -> Trainer:
    """The trainer of a kind of student."""
    return FrozenTrainer(options, cache) if options.kind == "frozen" else EncoderTrainer(options)


def train(trainer: Trainer, labelled: Labelled, stream: Sequence[str], options: StudentOptions, seed: int) -> Fitted:
    """Cross-fit for the calibration, then train on everything; `stream` is a random sample of unlabelled snippets.

    Leaves the trainer holding the student of all labels.
    """
    texts, labels = list(labelled.texts), labelled.labels

    def fit(train: np.ndarray) -> Callable[[np.ndarray], Floats]:
        trainer.fit(Labelled([texts[at] for at in train], labels[train], labelled.warm_rate), seed)
        return lambda held: trainer.logits([texts[at] for at in held])

    folds = options.folds or (5 if options.kind == "frozen" else 2)
    unseen = out_of_fold(fit, labels, folds, seed)
    trainer.fit(labelled, seed)
    calibration = calibrate(unseen, labels, trainer.logits(stream))
    cut = calibration.balanced
    both = labels.any() and not labels.all()
    accuracy = confusion(unseen > (balanced_threshold(unseen, labels) if both else cut), labels).balanced_accuracy
    return Fitted(calibration, float(sigmoid(np.array([cut]))[0]), accuracy)


def make_card(options: StudentOptions, criterion: str, fitted: Fitted, labels: int) -> Card:
    """The card of what was trained."""
    return Card(
        kind=options.kind,
        criterion=criterion,
        base=options.model,
        base_fingerprint=fingerprint(resolve(options.model)),
        max_tokens=options.max_tokens,
        long=options.long,
        join=options.join,
        pooling=options.pooling,
        slope=fitted.calibration.slope,
        offset=fitted.calibration.offset,
        rate=fitted.calibration.rate,
        threshold=fitted.threshold,
        labels=labels,
    )


def fine_tune(
    encoder: Encoder,
    labelled: Labelled,
    options: StudentOptions,
    seed: int,
    *,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[Any], Any] = lambda module: module,
) -> Head:
    """Train encoder and a new head in place; returns the head. Deterministic for a seed on one machine.

    Of `world` workers each takes every world-th snippet of a batch; `wrap` makes the module average their gradients.
    """
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    gamma = 2.0 if options.gamma is None else options.gamma
    classifier = classifier_of(encoder)
    model = wrap(classifier)
    steps = options.epochs * -(-len(labelled.texts) // options.batch)
    optimiser = torch.optim.AdamW(
        [
            {"params": encoder.module.parameters(), "lr": options.learning_rate},
            {"params": classifier.head.parameters(), "lr": 10 * options.learning_rate},
        ],
        weight_decay=0.01,
    )
    rise = max(1, round(_WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))
    )
    model.train()
    for _ in range(options.epochs):
        order = rng.permutation(len(labelled.texts))
        for first in range(0, len(order), options.batch):
            chosen = order[first : first + options.batch]
            # A worker without a snippet of its own still has to take part in the exchange of gradients.
            mine, weight = (chosen[rank::world], 1.0) if rank < len(chosen) else (chosen[:1], 0.0)
            batch = next(encoder.batches([labelled.texts[at] for at in mine], batch_tokens=1 << 30))
            wanted_B = torch.tensor(labelled.labels[mine[batch.texts]], dtype=torch.float32, device=encoder.device)
            loss_B = focal_loss(model(batch), wanted_B, 1 - labelled.warm_rate, gamma)
            optimiser.zero_grad(set_to_none=True)
            # Gradients are averaged over workers, so each counts its share of the mean as often as there are workers.
            (weight * loss_B.sum() * world / len(chosen)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    encoder.module.eval()
    return Head(classifier.head.weight.detach().float().cpu().numpy()[0], float(classifier.head.bias.detach()))


def classifier_of(encoder: Encoder) -> Any:
    """Encoder and a new head as one module that maps a `Batch` to logits, (B,)."""
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder.module
            self.head = torch.nn.Linear(encoder.width, 1)

        def forward(self, batch: Batch) -> torch.Tensor:
            logits_B: torch.Tensor = self.head(encoder.pooled(batch)).squeeze(-1)
            return logits_B

    return Classifier().to(encoder.device)


def state_of(encoder: Encoder, head: Head) -> State:
    """The weights of a fine-tuned encoder and its head as arrays of their own."""
    found = {name: tensor.detach().cpu().numpy().copy() for name, tensor in encoder.module.state_dict().items()}
    return {_WEIGHT: head.weight, _BIAS: np.array([head.bias]), **found}


def _fit_head(features: Floats, labels: Bools, alpha: float, gamma: float, l2: float) -> Head:
    """The head of least focal loss (mean weight one) plus `l2` times the squared norm, on centred features."""
    import torch

    x_NW = torch.from_numpy(np.asarray(features, np.float32))
    centre_W = x_NW.mean(0)
    x_NW = x_NW - centre_W
    y_N = torch.from_numpy(labels.astype(np.float32))
    scale = torch.where(y_N > 0.5, alpha, 1 - alpha).mean()
    weight = torch.zeros(x_NW.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = focal_loss(x_NW @ weight + bias, y_N, alpha, gamma).mean() / scale + l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = weight.detach()
    return Head(found.numpy(), float(bias.detach() - centre_W @ found))
