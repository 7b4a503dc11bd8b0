"""The golden tests of GradEx's notes, the solver against an exact one, and what is no number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from engine.errors import RecipeError, SourceError
from engine.selection import Projection, estimate_subsets, narrowed, rescaled
from engine.selection.estimator import Budget, Estimator
from engine.selection.margins import losses_of, margin_of, token_margins
from engine.selection.panel import residual_ratio, scaled_residual
from engine.selection.selectors import ensemble, everything, forward, mean_scores, similar
from engine.selection.solver import Examples, solve, solve_exactly

G4 = np.array([[1, 0.5], [0.2, 1], [0.8, -0.3], [1.5, 0.1]])


def solved(margins, gradients, ridge, mode="offset", **keys):
    count = len(margins)
    found = estimate_subsets(
        margins,
        gradients,
        [0] * count,
        [[0]],
        target_margins=[0.0],
        target_gradients=np.zeros((1, np.shape(gradients)[1])),
        ridge=ridge,
        mode=mode,
        **keys,
    )
    return found.steps[0]


def test_margin_of_a_probability():
    assert margin_of(0.8) == pytest.approx(1.386294, abs=1e-6)
    assert losses_of(margin_of(0.8)) == pytest.approx(0.223144, abs=1e-6)
    torch = pytest.importorskip("torch")
    loss = torch.nn.functional.cross_entropy(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), reduction="none")
    assert token_margins(loss).item() == pytest.approx(2 - np.logaddexp(1, 0), abs=1e-6)
    assert token_margins(loss).item() == pytest.approx(0.686738, abs=1e-6)
    assert np.isfinite(token_margins(torch.tensor([0.0, 1e-9, 80.0])).numpy()).all()


def test_a_linear_function_moves_as_predicted():
    theta, g, delta = np.array([1.0, -1.0]), np.array([2.0, 3.0]), np.array([0.1, 0.2])
    assert g @ theta == -1
    assert g @ (theta + delta) == pytest.approx(-0.2)
    found = estimate_subsets(
        [g @ theta], g[None], [0], [[]], target_margins=[g @ theta], target_gradients=g[None], ridge=1.0
    )
    assert found.loss[0] == pytest.approx(float(losses_of(-1.0)))


def test_projections_keep_products_and_begin_one_with_another():
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(2, 40_000)).astype(np.float32) + 0.5
    wide = Projection(40_000, 400, seed=3)
    projected = wide.project(pair)
    assert projected[0] @ projected[1] == pytest.approx(float(pair[0] @ pair[1]), rel=0.2)
    assert np.allclose(
        wide.expand(np.eye(400)[:, :400])[:, :5].T @ np.eye(400)[:, :1], wide.expand(np.eye(400))[0, :5][:, None]
    )
    # Rows of P have length 1, so that P P^T has a diagonal of ones.
    columns = wide.expand(np.eye(400, dtype=np.float32))
    assert np.square(columns).sum(0) == pytest.approx(np.ones(40_000), rel=1e-4)
    assert np.allclose(projected, pair @ columns.T, rtol=1e-3, atol=0.05)
    narrow = Projection(40_000, 100, seed=3).project(pair)
    assert np.allclose(narrowed(projected, 100), narrow, rtol=1e-3, atol=0.05)
    assert not np.allclose(Projection(40_000, 100, seed=4).project(pair), narrow, rtol=0.1)
    with pytest.raises(ValueError, match="39999"):
        wide.project(pair[:, 1:])


def test_logistic_regression_without_an_offset():
    assert solved(np.zeros(4), G4, 1.0) == pytest.approx([0.902557, 0.397816], abs=1e-6)
    # Flipping rows with their labels is an identity: sign(y) g stays the same.
    signs = np.array([1, -1, 1, -1])[:, None]
    assert solved(np.zeros(4), (G4 * signs) * signs, 1.0) == pytest.approx([0.902557, 0.397816], abs=1e-6)
    assert solved([9.0, 9, 9, 9], G4, 1.0, mode="repo") == pytest.approx([0.902557, 0.397816], abs=1e-6)


def test_an_intercept_would_differ():
    signs = np.array([1.0, -1, 1, -1])
    flipped = np.hstack([G4 * signs[:, None], np.ones((4, 1))])

    def objective(w):
        return np.logaddexp(0, -signs * (flipped @ w)).sum() + 0.5 * w @ w

    w = minimize(objective, np.zeros(3), tol=1e-12).x
    assert w == pytest.approx([0.901050, 0.402316, 0.025572], abs=1e-4)
    assert abs(w[0] - solved(np.zeros(4), G4, 1.0)[0]) > 1e-3


def test_a_strong_ridge_is_one_step_along_the_summed_gradient():
    w = solved(np.zeros(4), G4, 1e4)
    assert w == pytest.approx([1.7497e-4, 6.4988e-5], rel=3e-4)
    step = 1e-4 / 2 * G4.sum(0)
    assert step == pytest.approx([1.75e-4, 6.5e-5])
    assert w @ step / np.linalg.norm(w) / np.linalg.norm(step) == pytest.approx(1 - 1e-10, abs=1e-9)


def test_the_offset_matters():
    assert solved([3.0, -1.0], np.eye(2), 0.1) == pytest.approx([0.3417, 2.2416], abs=1e-4)
    assert solved([3.0, -1.0], np.eye(2), 0.1, mode="repo") == pytest.approx([1.6335, 1.6335], abs=1e-4)


def test_rescaled_steps():
    after = rescaled([3.0, 4.0], [1.0, 2.0], 0.4)
    assert after == pytest.approx([3.894427, 5.788854], abs=1e-6)
    assert np.linalg.norm(after - [3, 4]) == pytest.approx(2)
    w = solved([3.0, -1.0], np.eye(2), 0.1, mode="repo", step_length=2.0)
    assert np.linalg.norm(w) == pytest.approx(2)


def test_means_of_an_ensemble():
    subsets, scores = [(0, 1), (0, 2), (1, 2), (0, 3)], np.array([1.0, 2, 3, 4])
    assert mean_scores(4, subsets, scores) == pytest.approx([2.3333, 2, 2.5, 4], abs=1e-4)
    assert np.isnan(mean_scores(5, subsets, scores)[4])
    effects = np.array([-2.0, 0, 1, 1])
    pairs = [(i, j) for i in range(4) for j in range(i)]
    marks = mean_scores(4, pairs, np.array([effects[list(pair)].sum() for pair in pairs]))
    assert marks == pytest.approx([-1.3333, 0, 0.6667, 0.6667], abs=1e-4)
    assert np.diff(marks) == pytest.approx(np.diff(effects * (1 - 1 / 3)))


def toy(subsets):
    def f(s):
        return 1 - 0.3 * (0 in s) - 0.2 * (1 in s) + 0.25 * (0 in s and 1 in s) - 0.1 * (2 in s)

    return [f(s) for s in subsets]


def test_greedy_forward_selection():
    choice = forward(3, toy)
    assert choice.chosen == (0, 2)
    assert choice.trace[-1][1] == pytest.approx(0.6)
    assert [subset for subset, _ in choice.trace] == [(), (0,), (0, 2)]
    assert choice.marks[1] == pytest.approx(0.65)
    assert forward(3, toy, most=1).chosen == (0,)
    assert forward(3, lambda subsets: [len(s) for s in subsets]).chosen == ()


def test_other_selectors():
    choice = ensemble(3, toy, count=200, share=0.34, seed=0)
    assert choice.chosen[0] == 0
    assert set(ensemble(3, toy, count=200, share=0.34, threshold=0.85).chosen) == {0, 1}
    vectors = np.array([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    assert similar(vectors, np.array([1.0, 0.1]), 2).chosen == (0, 2)
    assert everything(3).chosen == (0, 1, 2)


def test_clipping_of_the_released_code():
    assert margin_of([0.95, 0.0005], clip=True) == pytest.approx([2.7515, -4.5458], abs=1e-4)
    assert margin_of([0.5], clip=True) == pytest.approx([0.0])


def test_error_metrics():
    f0, linear, true = np.array([1.0, 2]), np.array([1.09, 1.82]), np.array([1.1, 1.8])
    assert residual_ratio(linear, true) == pytest.approx(1.1236e-4, rel=1e-3)
    assert scaled_residual(f0, linear, true) == pytest.approx(9.1322e-5, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0.1, 30),
    ridge=st.floats(1e-3, 100),
    sharp=st.floats(0.01, 5),
)
def test_batches_agree_with_the_exact_solver(seed, spread, ridge, sharp):
    rng = np.random.default_rng(seed)
    examples = Examples(
        rng.normal(size=60) * spread, rng.normal(size=(60, 7)) * sharp, np.sort(rng.integers(0, 5, 60)), 5
    )
    subsets = [sorted(rng.choice(5, rng.integers(1, 6), replace=False).tolist()) for _ in range(9)]
    (found,) = solve(examples, subsets, np.full(9, ridge))
    for w, subset in zip(found.w, subsets, strict=True):
        exact = solve_exactly(examples, subset, ridge)
        rows = examples.members(subset)

        def objective(at, rows=rows):
            margins = examples.margins[rows] + examples.gradients[rows] @ at
            return losses_of(margins).sum() + ridge / 2 * at @ at

        best = minimize(objective, exact, tol=1e-12).fun
        assert objective(exact) <= best * (1 + 1e-9) + 1e-12
        assert objective(w) <= objective(exact) * (1 + 1e-9) + 1e-9


def test_uncertainty_falls_with_more_examples():
    rng = np.random.default_rng(0)

    def error(count):
        g, g_t = rng.normal(size=(count, 5)), rng.normal(size=(count, 5))
        found = estimate_subsets(
            rng.normal(size=count), g, ["a"] * count, [["a"]],
            target_margins=rng.normal(size=count), target_gradients=g_t, ridge=count / 10,
        )  # fmt: skip
        return float(found.uncertainty[0])

    assert error(4000) < 0.5 * error(200)


def test_the_uncertainty_is_that_of_other_samples():
    rng = np.random.default_rng(1)

    def drawn(n):
        return 1 + rng.normal(size=n), rng.normal(size=(n, 4)) + 0.5

    found = []
    for _ in range(200):
        (f, g), (f_t, g_t) = drawn(300), drawn(200)
        found.append(estimate_subsets(f, g, [0] * 300, [[0]], target_margins=f_t, target_gradients=g_t, ridge=100.0))
    spread = np.std([each.loss[0] for each in found])
    assert np.mean([each.uncertainty[0] for each in found]) == pytest.approx(spread, rel=0.2)


def test_bad_numbers_are_named():
    g = np.ones((4, 2))
    good = {"target_margins": [0.0, 0.0], "target_gradients": np.ones((2, 2)), "ridge": 1.0}
    bad = g.copy()
    bad[2, 0] = np.nan
    with pytest.raises(SourceError, match="example 2, of b"):
        estimate_subsets(np.zeros(4), bad, ["a", "a", "b", "b"], [["a"]], **good)
    with pytest.raises(SourceError, match="the target"):
        estimate_subsets(np.zeros(4), g, ["a"] * 4, [["a"]], **{**good, "target_margins": [0.0, np.inf]})
    with pytest.raises(SourceError, match="'c' has no examples"):
        estimate_subsets(np.zeros(4), g, ["a"] * 4, [["a"], ["c"]], **good)
    with pytest.raises(RecipeError, match="ridge of 0"):
        estimate_subsets(np.zeros(4), g, ["a"] * 4, [["a"]], **{**good, "ridge": 0.0})
    with pytest.raises(ValueError, match="do not fit"):
        estimate_subsets(np.zeros(3), g, ["a"] * 4, [["a"]], **good)
    assert len(estimate_subsets(np.zeros(4), g, ["a"] * 4, [], **good).loss) == 0
    many = estimate_subsets(np.zeros(4), g, ["a"] * 4, [["a"]] * 3, **{**good, "ridge": [1.0, 2.0, 3.0]})
    assert many.loss[0] < many.loss[1] < many.loss[2]


def test_a_step_of_no_length_stays_and_a_training_that_never_helped_is_told():
    rng = np.random.default_rng(0)
    one = Estimator(
        tasks=("a", "b"),
        margins=rng.normal(size=12),
        gradients=rng.normal(size=(12, 4)),
        task_numbers=np.repeat([0, 1], 6),
        target_margins=rng.normal(size=5),
        target_gradients=rng.normal(size=(5, 4)),
        budget=Budget(4, 1.0, 4),
        curve=np.array([[1.0, 0.0], [2.0, 0.0]]),
    )
    found = one.of([[0], [0, 1], []])
    assert not found.steps.any()
    assert found.loss.tolist() == pytest.approx([losses_of(one.target_margins).mean()] * 3)
    start = float(found.loss[0])
    with pytest.raises(SourceError, match=r"never made the target better.*estimate\.ridge"):
        one.calibrated([(1.0, start + 1), (2.0, start + 2)])


def test_a_mode_that_does_not_exist():
    with pytest.raises(ValueError, match=r"'offest'.*offset, repo"):
        solved([0.0], [[1.0]], 1.0, mode="offest")
