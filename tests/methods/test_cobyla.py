"""COBYLA in a box: scipy's own calls, reflected at the bounds, counted, restarted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize

from mixopt.methods._cobyla import Vector, minimize_in_box, reflect


def bowl(dims: int, seed: int = 0) -> Callable[[Vector], float]:
    optimum = np.random.default_rng(seed).uniform(0.3, 0.7, dims)

    def function(point: Vector) -> float:
        return float(np.sum((point - optimum) ** 2 * np.arange(1, dims + 1)))

    return function


def recorded(function: Callable[[Vector], float]) -> tuple[Callable[[Vector], float], list[Vector]]:
    log: list[Vector] = []

    def wrapped(point: Vector) -> float:
        log.append(point.copy())
        return function(point)

    return wrapped, log


def naive_reflection(value: float, lower: float, upper: float) -> float:
    while not lower <= value <= upper:
        value = 2 * lower - value if value < lower else 2 * upper - value
    return value


@pytest.mark.parametrize(("lower", "upper"), [(0.25, 0.75), (0.3, 1.0), (-2.0, -1.5)])
def test_reflection_mirrors_until_inside(lower: float, upper: float) -> None:
    points = np.random.default_rng(0).uniform(-5, 5, 500)
    inside = (points >= lower) & (points <= upper)
    found = reflect(points, lower, upper)
    assert found == pytest.approx([naive_reflection(point, lower, upper) for point in points], abs=1e-12)
    assert np.all((found >= lower) & (found <= upper))
    assert np.array_equal(found[inside], points[inside])
    assert np.array_equal(reflect(np.array([lower, upper]), lower, upper), [lower, upper])


@pytest.mark.parametrize("dims", [1, 3, 6])
def test_it_asks_what_scipy_asks_in_steps_of_a_sixth_of_the_box(dims: int) -> None:
    function, log = recorded(bowl(dims))
    start, (lower, upper) = np.full(dims, 0.6), (0.3, 1.0)
    minimize_in_box(function, start, (lower, upper), 20)
    calls: list[Vector] = []

    def in_steps(steps: Vector) -> float:
        point = np.array([naive_reflection(value, lower, upper) for value in start + steps * (upper - lower) / 6])
        calls.append(point)
        return bowl(dims)(point)

    minimize(in_steps, np.zeros(dims), method="COBYLA", tol=1e-6, options={"rhobeg": 1.0, "maxiter": 1000})
    assert np.array_equal(log[0], start)
    assert len(log) == 20
    assert np.array(log) == pytest.approx(np.array(calls[:20]), abs=1e-9)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 30, 150])
def test_the_budget_is_the_number_of_distinct_points(budget: int) -> None:
    function, log = recorded(bowl(4))
    best = minimize_in_box(function, np.full(4, 0.5), (0.25, 0.75), budget)
    assert len(log) == budget == len({point.tobytes() for point in log})
    assert all(np.all((point >= 0.25) & (point <= 0.75)) for point in log)
    assert best.tobytes() == min(log, key=bowl(4)).tobytes()


def test_it_starts_again_from_the_best_point_where_it_converges_early() -> None:
    function, log = recorded(lambda point: round(bowl(2)(point), 3))
    minimize_in_box(function, np.full(2, 0.5), (0.0, 1.0), 10_000)
    once: list[Vector] = []

    def in_steps(steps: Vector) -> float:
        once.append(0.5 + steps / 6)
        return round(bowl(2)(once[-1]), 3)

    minimize(in_steps, np.zeros(2), method="COBYLA", tol=1e-6, options={"rhobeg": 1.0})
    before, after = log[: len(once)], log[len(once) :]
    assert len(before) < len(log) < 10_000, "another round, and an end"
    best = min(before, key=lambda point: round(bowl(2)(point), 3))
    assert after[0] == pytest.approx([best[0] + 1 / 6, best[1]], abs=1e-9)


def test_a_plain_ends_it_and_the_first_of_equals_is_the_best() -> None:
    function, log = recorded(lambda point: 1.0)
    start = np.full(3, 0.5)
    assert np.array_equal(minimize_in_box(function, start, (0.25, 0.75), 900), start)
    assert 4 <= len(log) < 50


def test_it_finds_the_minimum() -> None:
    optimum = np.random.default_rng(0).uniform(0.3, 0.7, 5)
    assert minimize_in_box(bowl(5), np.full(5, 0.5), (0.25, 0.75), 150) == pytest.approx(optimum, abs=5e-3)


def test_an_error_of_the_function_is_passed_on() -> None:
    def broken(point: Vector) -> float:
        raise ZeroDivisionError("of the function")

    with pytest.raises(ZeroDivisionError, match="of the function"):
        minimize_in_box(broken, np.full(2, 0.5), (0.0, 1.0), 9)
