"""The recipe's method carried out, and how sure the choice is.

Estimates of one subset are asked for once, target example by target example: so where the choice is made again on
resampled targets (bootstrap), only subsets not seen before cost a regression. A task's share of those choices tells
whether chance chose it.

Left out: the selectors themselves (`engine.selection.selectors`). Called by `engine.selection.job`.

Shapes: T tasks, M target examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.errors import SourceError
from engine.selection.estimator import Estimator
from engine.selection.gradients import Described
from engine.selection.margins import losses_of
from engine.selection.recipe import MethodOptions
from engine.selection.selectors import Choice, Floats, Score, Subset, at_random, ensemble, everything, forward, similar

BOOTSTRAPS = 50


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and what is estimated of it."""

    choice: Choice
    loss: float
    uncertainty: float
    """Standard error of the loss, nats."""
    effects: Floats
    """What each task does to the loss of the chosen ones: with it less without it, (T,), nats."""
    errors: Floats
    """Standard errors of the effects over target examples, (T,)."""
    shares: Floats
    """Share of choices on resampled targets that hold a task, (T,); nan for methods that are not resampled."""
    compared: dict[str, tuple[Subset, float, float]]
    """Other ways to choose: tasks, estimated loss, its standard error."""


class Losses:
    """Estimated losses of subsets, target example by target example; each subset is solved once."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._known: dict[Subset, Floats] = {}

    def __call__(self, subsets: Sequence[Subset]) -> Floats:
        """(number of subsets, M)."""
        wanted = [tuple(sorted(each)) for each in subsets]
        missing = [each for each in dict.fromkeys(wanted) if each not in self._known]
        if missing:
            steps = self._estimator.of(missing).steps
            after = self._estimator.target_margins + steps @ self._estimator.target_gradients.T
            self._known.update(zip(missing, losses_of(after), strict=True))
        return np.stack([self._known[each] for each in wanted])


def choose(
    options: MethodOptions, estimator: Estimator, found: Described, target: Described, trained: Score, seed: int
) -> Chosen:
    """Choose tasks. `found` and `target` describe the candidates' examples and the target's; `trained` scores by real
    training. Raises `SourceError` where not a single task helps."""
    losses, count = Losses(estimator), len(estimator.tasks)
    targets = len(estimator.target_margins)

    def greedy(weights: npt.NDArray[np.float64]) -> Choice:
        return forward(count, lambda subsets: losses(subsets) @ weights, most=options.most)

    evenly = np.full(targets, 1 / targets)
    first = greedy(evenly)
    size = options.size or max(1, len(first.chosen))
    ways: dict[str, Callable[[], Choice]] = {
        "forward": lambda: first,
        "ensemble": lambda: ensemble(
            count, lambda subsets: losses(subsets) @ evenly,
            count=options.subsets, share=options.share, threshold=options.threshold, seed=seed,
        ),
        "gradient": lambda: similar(*_means(estimator, found.gradients, target.gradients), size),
        "representation": lambda: similar(*_means(estimator, found.representations, target.representations), size),
        "random": lambda: at_random(count, size, seed),
        "all": lambda: everything(count),
        "trained": lambda: forward(count, trained, most=options.most),
    }  # fmt: skip
    choice = ways[options.method]()
    if not choice.chosen and options.method == "ensemble":
        raise SourceError(
            f"Not a single task has a mean estimate as low as select.threshold, {options.threshold:g}; the lowest is"
            f" {np.nanmin(choice.marks):.4f}.",
            "Raise select.threshold, or leave it out.",
        )
    if not choice.chosen:
        raise SourceError(
            "Not a single task lowers the target's loss by the estimates, so none is chosen.",
            "Give other candidates, or train longer: the report of the meta-training shows what it learns.",
        )
    others = {name: way() for name, way in ways.items() if name not in (options.method, "trained")}
    shown = {name: each.chosen for name, each in others.items() if each.chosen}
    estimates = estimator.of([choice.chosen, *shown.values()])
    pairs = zip(shown, estimates.loss[1:], estimates.uncertainty[1:], strict=True)
    effects, errors = _effects(losses, choice.chosen, count)
    return Chosen(
        choice,
        float(estimates.loss[0]),
        float(estimates.uncertainty[0]),
        effects,
        errors,
        _shares(greedy, count, targets, seed) if options.method == "forward" else np.full(count, np.nan),
        {name: (shown[name], float(loss), float(error)) for name, loss, error in pairs},
    )


def _means(
    estimator: Estimator, vectors: npt.NDArray[np.float32], target: npt.NDArray[np.float32]
) -> tuple[Floats, Floats]:
    """Mean vector of each task, (T, w), and of the target, (w,)."""
    tasks = [vectors[estimator.task_numbers == task].mean(0) for task in range(len(estimator.tasks))]
    return np.stack(tasks).astype(np.float64), target.mean(0).astype(np.float64)


def _effects(losses: Losses, chosen: Subset, count: int) -> tuple[Floats, Floats]:
    """See `Chosen`."""
    within = [tuple(sorted({*chosen, task})) for task in range(count)]
    without = [tuple(sorted({*chosen} - {task})) for task in range(count)]
    each = losses(within) - losses(without)
    spread = each.std(1, ddof=1) if each.shape[1] > 1 else np.zeros(count)
    return each.mean(1), spread / np.sqrt(each.shape[1])


def _shares(greedy: Callable[[Floats], Choice], count: int, targets: int, seed: int) -> Floats:
    """How often each task is chosen on a resampled target."""
    rng = np.random.default_rng(seed)
    counts = np.zeros(count)
    for _ in range(BOOTSTRAPS):
        weights = rng.multinomial(targets, np.full(targets, 1 / targets)) / targets
        counts[list(greedy(weights).chosen)] += 1
    return counts / BOOTSTRAPS
