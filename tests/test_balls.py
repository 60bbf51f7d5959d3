from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize, stats
from torch import Tensor

from art_logits.balls import BALLS, L1Ball, L2Ball, LinfBall, NormBall, get_ball

NORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Linf": lambda d: np.abs(d).max(axis=1),
    "L2": lambda d: np.sqrt((d**2).sum(axis=1)),
    "L1": lambda d: np.abs(d).sum(axis=1),
}
#: Norm whose unit ball is the polar of the key's.
DUALS = {"Linf": "L1", "L2": "L2", "L1": "Linf"}

names = st.sampled_from(sorted(BALLS))
radii = st.floats(0.0, 3.0)


@st.composite
def points(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 8)))
    values = st.floats(-5, 5, allow_subnormal=False).map(lambda v: round(v, 6))
    return draw(arrays(np.float64, shape, elements=values))


def column(value: float, count: int) -> Tensor:
    return torch.full((count, 1), value, dtype=torch.float64)


def project(name: str, delta: np.ndarray, eps: float) -> np.ndarray:
    return BALLS[name].project(torch.from_numpy(delta), column(eps, len(delta))).numpy()


@given(points(), names)
def test_norms(delta: np.ndarray, name: str) -> None:
    found = BALLS[name].norm(torch.from_numpy(delta).view(*delta.shape, 1)).numpy()
    np.testing.assert_allclose(found, NORMS[name](delta), rtol=1e-12)


@given(points(), names, radii)
def test_projections_lie_in_the_ball(delta: np.ndarray, name: str, eps: float) -> None:
    assert (NORMS[name](project(name, delta, eps)) <= eps * (1 + 1e-12) + 1e-12).all()


@given(points(), names, radii)
def test_projection_is_idempotent(delta: np.ndarray, name: str, eps: float) -> None:
    once = project(name, delta, eps)
    np.testing.assert_allclose(project(name, once, eps), once, rtol=1e-12, atol=1e-12)


@given(points(), names)
def test_projection_leaves_the_ball_s_points_alone(delta: np.ndarray, name: str) -> None:
    eps = float(NORMS[name](delta).max()) * (1 + 1e-12)
    np.testing.assert_array_equal(project(name, delta, eps), delta)


@given(points(), names, radii, st.integers(0, 2**32 - 1))
def test_no_feasible_point_is_nearer_than_the_projection(
    delta: np.ndarray, name: str, eps: float, seed: int
) -> None:
    """Of a closed convex set: <delta - p, q - p> <= 0 for the projection p and every point q of the set."""
    nearest = project(name, delta, eps)
    rng = np.random.default_rng(seed)
    for row, point in zip(delta, nearest, strict=True):
        for _ in range(20):
            other = eps * BALLS[name].sample(rng, len(row)).astype(np.float64)
            other *= min(1.0, eps / max(float(NORMS[name](other[None])[0]), 1e-300))
            assert (row - point) @ (other - point) <= 1e-9
            assert np.linalg.norm(row - point) <= np.linalg.norm(row - other) + 1e-9


def test_l1_projection_agrees_with_bisection_on_the_threshold(rng: np.random.Generator) -> None:
    """Soft thresholding at the root of sum(max(|d| - t, 0)) = eps, found by scipy instead of sorting."""
    for size in (1, 2, 7, 50):
        delta = rng.normal(size=(1, size))
        for share in (0.05, 0.5, 0.95):
            eps = share * float(np.abs(delta).sum())
            root = optimize.brentq(
                lambda t, d=delta, e=eps: np.maximum(np.abs(d) - t, 0).sum() - e, 0, np.abs(delta).max()
            )
            expected = np.sign(delta) * np.maximum(np.abs(delta) - root, 0)
            np.testing.assert_allclose(project("L1", delta, eps), expected, atol=1e-10)


@pytest.mark.parametrize("name", ["L1", "L2"])
def test_projections_agree_with_a_general_solver(name: str, rng: np.random.Generator) -> None:
    for _ in range(3):
        target = rng.normal(size=4) * 2
        # Split in positive and negative parts, which makes the L1 constraint smooth.
        constraint = {
            "L1": lambda s: 1.0 - s.sum(),
            "L2": lambda s: 1.0 - ((s[:4] - s[4:]) ** 2).sum(),
        }[name]
        solved = optimize.minimize(
            lambda s, t=target: ((s[:4] - s[4:] - t) ** 2).sum(),
            np.full(8, 0.05),
            bounds=[(0, None)] * 8,
            constraints={"type": "ineq", "fun": constraint},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        expected = solved.x[:4] - solved.x[4:]
        np.testing.assert_allclose(project(name, target[None], 1.0)[0], expected, atol=1e-4)


def test_projections_by_hand() -> None:
    delta = np.array([[3.0, -4.0, 0.0]])
    np.testing.assert_allclose(project("Linf", delta, 2.0), [[2.0, -2.0, 0.0]])
    np.testing.assert_allclose(project("L2", delta, 2.5), [[1.5, -2.0, 0.0]])
    np.testing.assert_allclose(project("L1", delta, 3.0), [[1.0, -2.0, 0.0]])
    np.testing.assert_allclose(project("L1", delta, 0.5), [[0.0, -0.5, 0.0]])


@given(points(), names)
def test_the_ball_of_radius_zero_is_the_origin(delta: np.ndarray, name: str) -> None:
    np.testing.assert_array_equal(np.abs(project(name, delta, 0.0)), np.zeros_like(delta))


def test_every_sample_has_its_own_radius() -> None:
    delta = torch.full((3, 2, 2), 2.0)
    eps = torch.tensor([0.0, 1.0, 100.0]).view(3, 1, 1)
    for name, ball in BALLS.items():
        norms = ball.norm(ball.project(delta, eps))
        torch.testing.assert_close(norms, torch.minimum(ball.norm(delta), eps.flatten()), msg=name)


def test_linf_also_takes_a_radius_per_element() -> None:
    delta, eps = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.25]])
    assert LinfBall().project(delta, eps).tolist() == [[0.5, -0.25]]


@given(points(), st.sampled_from(["Linf", "L2"]))
def test_steepest_ascends_as_fast_as_the_dual_norm_allows(grad: np.ndarray, name: str) -> None:
    step = BALLS[name].steepest(torch.from_numpy(grad)).numpy()
    assert (NORMS[name](step) <= 1 + 1e-12).all()
    np.testing.assert_allclose((grad * step).sum(axis=1), NORMS[DUALS[name]](grad), rtol=1e-9, atol=1e-12)


@given(points(), st.floats(0.01, 1.0))
def test_l1_steps_are_sparse_ascending_and_of_length_one(grad: np.ndarray, density: float) -> None:
    step = L1Ball(density).steepest(torch.from_numpy(grad)).numpy()
    count = max(1, round(density * grad.shape[1]))
    moved = step != 0
    assert (moved.sum(axis=1) <= count).all()
    np.testing.assert_allclose(NORMS["L1"](step), np.where(np.abs(grad).max(axis=1) > 0, 1.0, 0.0))
    assert (step * grad >= 0).all()
    for row, chosen in zip(np.abs(grad), moved, strict=True):
        if chosen.any() and not chosen.all():
            assert row[chosen].min() >= row[~chosen].max() or chosen.sum() < count


def test_an_l1_step_of_one_coordinate_is_the_steepest() -> None:
    grad = torch.tensor([[0.5, -3.0, 2.0]])
    assert L1Ball(density=0.01).steepest(grad).tolist() == [[0.0, -1.0, 0.0]]


def test_l1_steps_move_a_share_of_the_coordinates() -> None:
    grad = torch.linspace(-1, 2, 100).view(1, 100)
    step = L1Ball(0.05).steepest(grad)
    assert step.nonzero()[:, 1].tolist() == [95, 96, 97, 98, 99]
    torch.testing.assert_close(step[step != 0], torch.full((5,), 0.2))


@pytest.mark.parametrize("name", sorted(BALLS))
def test_no_gradient_no_step(name: str) -> None:
    grad = torch.zeros(2, 3, 2)
    assert torch.equal(BALLS[name].steepest(grad), grad)
    assert torch.equal(BALLS[name].step(grad, torch.ones(2, 1, 1), torch.ones(2, 3, 2)), grad)


@given(points(), st.floats(0.01, 20.0), st.randoms(use_true_random=False))
def test_no_l1_step_within_the_bounds_ascends_faster(grad: np.ndarray, length: float, rng: Any) -> None:
    """The optimum of the linear programme, by scipy."""
    room = np.array([[rng.choice([0.0, rng.random()]) for _ in row] for row in grad])
    lengths = torch.full((len(grad), 1), length, dtype=torch.float64)
    step = L1Ball(1e-9).step(torch.from_numpy(grad), lengths, torch.from_numpy(room)).numpy()
    assert (np.abs(step) <= room + 1e-12).all()
    assert (NORMS["L1"](step) <= length * (1 + 1e-9)).all()
    assert (step * grad >= 0).all()
    for row, space, found in zip(grad, room, step, strict=True):
        scale = np.abs(row).max() or 1.0  # the solver's tolerances are absolute
        cost = -np.abs(row) / scale
        best = optimize.linprog(
            cost, A_ub=np.ones((1, len(row))), b_ub=[length], bounds=[(0, most) for most in space]
        )
        assert (row * found).sum() / scale == pytest.approx(-best.fun, rel=1e-6, abs=1e-9)


def test_an_l1_step_moves_at_least_its_share_of_the_coordinates() -> None:
    grad, room = torch.linspace(1, 2, 200).view(1, 200), torch.full((1, 200), 100.0)
    step = L1Ball().step(grad, torch.tensor([[6.0]]), room)
    assert step.nonzero()[:, 1].tolist() == [198, 199]
    torch.testing.assert_close(step[0, 198:], torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize("name", sorted(BALLS))
def test_a_step_has_the_length_asked_for(name: str) -> None:
    grad = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([[0.0], [0.1], [1.0], [2.0], [7.0]])
    step = BALLS[name].step(grad, lengths, torch.full((5, 40), 0.5))
    np.testing.assert_allclose(NORMS[name](step.numpy()), lengths[:, 0].numpy(), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_l2_steps_survive_gradients_whose_squares_do_not(size: float) -> None:
    step = L2Ball().steepest(torch.tensor([[3.0, 4.0]]) * size)
    torch.testing.assert_close(step, torch.tensor([[0.6, 0.8]]))


def draws(ball: NormBall, size: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.stack([ball.sample(rng, size) for _ in range(count)]).astype(np.float64)


@pytest.mark.parametrize("name", sorted(BALLS))
@pytest.mark.parametrize("size", [1, 5])
def test_samples_fill_the_ball_uniformly(name: str, size: int) -> None:
    """P(norm <= r) = r^d in any norm; and no side of any axis is preferred."""
    drawn = draws(BALLS[name], size, 2000)
    radii = NORMS[name](drawn)
    assert radii.max() <= 1 + 1e-6
    assert stats.kstest(radii, lambda r: np.clip(r, 0, 1) ** size).pvalue > 0.01
    assert stats.binomtest(int((drawn > 0).sum()), drawn.size).pvalue > 0.01


@pytest.mark.parametrize("name", sorted(BALLS))
def test_samples_have_the_marginal_of_the_uniform_distribution(name: str) -> None:
    """In two dimensions the density of one coordinate is the length of the ball's section there."""
    drawn = draws(BALLS[name], 2, 2000)[:, 0]
    marginal: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "Linf": lambda t: (t + 1) / 2,
        "L2": lambda t: 0.5 + (t * np.sqrt(1 - t**2) + np.arcsin(t)) / np.pi,
        "L1": lambda t: 0.5 + t - np.sign(t) * t**2 / 2,
    }
    assert stats.kstest(drawn, lambda t: marginal[name](np.clip(t, -1, 1))).pvalue > 0.01


@pytest.mark.parametrize("name", sorted(BALLS))
def test_samples_come_from_the_generator_alone(name: str) -> None:
    first, second = (BALLS[name].sample(np.random.default_rng(3), 6) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (6,)
    assert first.dtype == np.float32


def test_get_ball() -> None:
    assert get_ball("L1") is BALLS["L1"]
    for value in ("linf", np.inf, 2):
        with pytest.raises(ValueError, match="norm must be one of Linf, L2, L1, got"):
            get_ball(value)


@given(points(), names, radii)
@settings(max_examples=50)
def test_rows_do_not_see_each_other(delta: np.ndarray, name: str, eps: float) -> None:
    ball = BALLS[name]
    whole, radius = torch.from_numpy(delta), column(eps, len(delta))
    for i in range(len(delta)):
        assert torch.equal(ball.project(whole[[i]], radius[[i]])[0], ball.project(whole, radius)[i])
        assert torch.equal(ball.steepest(whole[[i]])[0], ball.steepest(whole)[i])


@pytest.mark.parametrize("name", ["L2", "L1"])
def test_a_coordinate_at_its_bound_takes_no_part_of_a_step(name: str) -> None:
    grad, length = torch.tensor([[3.0, 4.0, -2.0]]), torch.tensor([[0.5]])
    step = BALLS[name].step(grad, length, torch.tensor([[1.0, 0.0, 1.0]]))
    assert float(step[0, 1]) == 0
    np.testing.assert_allclose(NORMS[name](step.numpy()), 0.5, rtol=1e-6)
    assert float(step[0, 0]) > 0
