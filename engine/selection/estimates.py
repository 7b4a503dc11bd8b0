"""What training on a subset of tasks would give on the target, estimated by first order, without training.

At the meta-initialisation theta*, trained on all tasks, an example's margin is f_i, its gradient g_i, and a step w in
the projected parameters makes it f_i + g_i . w. A subset's step is that of a regularised logistic regression over its
examples (`engine.selection.solver`), and its estimate the target's loss after it (GradEx, arXiv 2409.19458).

    offset   margins count: what theta* has learnt already pulls less. The theory's form.
    repo     what the released code does: no margins in the regression, and every step is given the same length

Left out: margins and gradients (`engine.selection.gradients`), choosing by estimates (`engine.selection.selectors`).
Called by `engine.selection.job` and `tuning`; needs neither torch nor Ray.

Shapes: N training examples, M target examples, d projected numbers, B subsets.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from threadpoolctl import threadpool_limits

from engine.errors import RecipeError, SourceError
from engine.selection.margins import losses_of
from engine.selection.solver import Examples, Floats, solve

Mode = Literal["offset", "repo"]


@dataclass(frozen=True)
class SubsetEstimates:
    """What is estimated of each subset."""

    loss: Floats
    """Mean over the target of log(1 + exp(-margin)), in nats, (B,)."""
    uncertainty: Floats
    """Standard error of the loss, in nats, (B,): of the subset's examples and the target's being a sample."""
    steps: Floats
    """The step of each subset in the projected parameters, (B, d)."""
    slopes: Floats
    """How the length of a step goes with its ridge, logarithm to logarithm, (B,): between -1 and 0."""
    newton: int
    """Subsets that needed Newton's method."""

    def put(self, places: npt.NDArray[np.int64], others: "SubsetEstimates") -> None:
        """Take in the estimates of others at these places."""
        for name in ("loss", "uncertainty", "steps", "slopes"):
            getattr(self, name)[places] = getattr(others, name)


def estimate_subsets(
    margins: npt.ArrayLike,
    gradients: npt.ArrayLike,
    task_ids: Sequence[Hashable] | npt.NDArray[Any],
    subsets: Sequence[Sequence[Hashable]],
    *,
    target_margins: npt.ArrayLike,
    target_gradients: npt.ArrayLike,
    ridge: float | npt.ArrayLike,
    mode: Mode = "offset",
    step_length: float | None = None,
) -> SubsetEstimates:
    """The target's loss after each subset's step.

    `margins` (N,), `gradients` (N, d), `task_ids` (N,), `subsets` lists of task ids, `target_margins` (M,),
    `target_gradients` (M, d); `ridge` is a number, or one per subset. For each subset S it solves

        min_w  sum_{i in S} log(1 + exp(-(f_i + g_i . w)))  +  ridge / 2 |w|^2

    With mode `repo` the margins f_i are left out of it, and w is then given `step_length`, if there is one. Raises
    `SourceError` for margins or gradients that are no numbers, or a task without examples; `RecipeError` for a ridge
    that is not positive; `ValueError` for shapes that do not fit and a mode that does not exist.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}, and should be one of {', '.join(get_args(Mode))}")
    f, g = np.asarray(margins, np.float64), np.asarray(gradients, np.float64)
    f_t, g_t = np.asarray(target_margins, np.float64), np.asarray(target_gradients, np.float64)
    if g.ndim != 2 or f.shape != g.shape[:1] or len(task_ids) != len(f):
        raise ValueError(f"margins {f.shape}, gradients {g.shape} and {len(task_ids)} task ids do not fit together")
    if g_t.ndim != 2 or f_t.shape != g_t.shape[:1] or g_t.shape[1] != g.shape[1] or not len(f_t):
        raise ValueError(f"target margins {f_t.shape} and gradients {g_t.shape} do not fit gradients {g.shape}")
    ridges = np.broadcast_to(np.asarray(ridge, np.float64), (len(subsets),)).copy()
    if len(subsets) and not (np.isfinite(ridges).all() and ridges.min() > 0):
        raise RecipeError(f"A ridge of {ridges.min():g} leaves the estimates without a solution.", "Give more than 0.")
    names, numbers = _numbered(task_ids)
    check_numbers(f, g, [str(names[number]) for number in numbers])
    check_numbers(f_t, g_t, ["the target"] * len(f_t))
    places = {name: place for place, name in enumerate(names)}
    wanted = [[_place(places, task) for task in dict.fromkeys(subset)] for subset in subsets]
    examples = Examples(f if mode == "offset" else np.zeros_like(f), g, numbers, len(names))
    # Matrices of some hundred rows gain nothing from a second thread, and lose much where another process has the core.
    with threadpool_limits(1):
        found = [_evaluated(examples, each, f_t, g_t, mode, step_length) for each in solve(examples, wanted, ridges)]
    if not found:
        nothing = np.empty(0)
        return SubsetEstimates(nothing, nothing, np.empty((0, g.shape[1])), nothing, 0)
    losses, errors, steps, slopes = (np.concatenate(each) for each in zip(*(each[:4] for each in found), strict=True))
    return SubsetEstimates(losses, errors, steps, slopes * ridges, sum(each[4] for each in found))


def rescaled(parameters: npt.ArrayLike, step: npt.ArrayLike, scale: float) -> Floats:
    """The parameters after a step of length `scale` times their own norm: theta + scale |theta| s / |s|, (p,)."""
    theta, s = np.asarray(parameters, np.float64), np.asarray(step, np.float64)
    return np.asarray(theta + scale * np.linalg.norm(theta) * s / np.linalg.norm(s))


def check_numbers(margins: Floats, gradients: Floats, whose: Sequence[str]) -> None:
    """Raise `SourceError`, naming the task, for an example whose margin or gradient is no number."""
    wrong = ~(np.isfinite(margins) & np.isfinite(gradients).all(axis=1))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise SourceError(
            f"{int(wrong.sum())} of {len(wrong)} examples have a margin or a gradient that is no number; the first is"
            f" example {first}, of {whose[first]}.",
            "Lower optimiser.learning_rate of the meta-training, or look at these examples.",
        )


def _evaluated(
    examples: Examples, solved: Any, f_t: Floats, g_t: Floats, mode: Mode, step_length: float | None
) -> tuple[Floats, Floats, Floats, Floats, int]:
    """Loss and its standard error, steps, (B, d), and slopes over ridges of a batch of solutions."""
    w = solved.w
    if mode == "repo" and step_length is not None:
        norms = np.linalg.norm(w, axis=1, keepdims=True)
        w = w * np.divide(step_length, norms, out=np.zeros_like(norms), where=norms > 0)
    after = f_t + w @ g_t.T
    losses = losses_of(after)
    # How the loss would move with w, and w with the weight of each example (the delta method, sandwich form).
    slope = -expit(-after) @ g_t / len(f_t)
    lever = np.einsum("bij,bj->bi", solved.inverse, slope)
    pull = expit(-(examples.margins + solved.w @ examples.gradients.T)) * solved.members
    variance = (np.square(pull) * np.square(lever @ examples.gradients.T)).sum(1)
    spread = losses.var(axis=1, ddof=1) / len(f_t) if len(f_t) > 1 else np.zeros(len(w))
    # dw / d ridge = -H^-1 w
    fall = -np.einsum("bi,bi->b", solved.w, np.einsum("bij,bj->bi", solved.inverse, solved.w))
    squares = np.square(solved.w).sum(1)
    slopes = np.divide(fall, squares, out=np.full(len(w), -1.0), where=squares > 0)
    return losses.mean(1), np.sqrt(variance + spread), w, slopes, solved.newton


def _numbered(task_ids: Any) -> tuple[list[Hashable], npt.NDArray[np.int64]]:
    """Distinct ids in order of appearance, and the place of each example's, (N,)."""
    places: dict[Hashable, int] = {}
    numbers = [places.setdefault(each, len(places)) for each in np.asarray(task_ids, object).tolist()]
    return list(places), np.array(numbers, np.int64)


def _place(places: dict[Hashable, int], task: Hashable) -> int:
    if task not in places:
        raise SourceError(f"The task {task!r} has no examples.", "Give it rows, or leave it out.")
    return places[task]
