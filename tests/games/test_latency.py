"""The latency families: value, slope, area and inverse agree with each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from wardrop.games.errors import GameError
from wardrop.games.routing import MM1, Affine, Marginal, Mixed, Polynomial, Saturating, Table

FAMILIES = {
    "affine": Affine([0.1, 0.2], [0.3, 0.0]),
    "polynomial": Polynomial([[0.1, 0.0], [0.0, 0.2], [0.5, 0.1]]),
    "mm1": MM1([8.0, 12.0]),
    "saturating": Saturating([0.1, 0.2], 0.05, 0.3, [2.0, 3.0], [8.0, 9.0], 1.0),
    "saturating2": Saturating(0.1, 0.05, 0.3, 2.0, [8.0, 10.0], 2.0),
    "saturating3": Saturating(0.1, 0.05, 0.3, 2.0, [8.0, 10.0], 2.5),
    "mixed": Mixed([MM1(9.0), Affine(0.3, 0.1)]),
    "table": Mixed([Table([1.0, 3.0, 5.0], [0.1, 0.2, 0.8]), Table([0.0, 4.0], [0.2, 0.2])]),
    "marginal": Marginal(Saturating(0.1, 0.05, 0.3, 2.0, [8.0, 10.0], 2.0)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_integral_is_the_area_under_the_delay(name: str) -> None:
    latency = FAMILIES[name]
    for load in (1.5, 4.5, 7.0):
        whole = latency.integral(np.full(latency.workers, load))
        for j in range(latency.workers):
            area, _ = quad(
                lambda x, j=j: float(latency(np.full(latency.workers, x))[j]),
                0,
                load,
                points=[1, 2, 3],
            )
            assert whole[j] == pytest.approx(area, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "marginal"])
def test_the_slope_is_the_derivative(name: str) -> None:
    latency = FAMILIES[name]
    for load in (0.7, 2.6, 6.1):
        x = np.full(latency.workers, load)
        difference = (latency(x + 1e-6) - latency(x - 1e-6)) / 2e-6
        np.testing.assert_allclose(latency.slope(x), difference, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30, deadline=None)
@given(seconds=st.floats(0.01, 20.0))
def test_load_at_is_the_largest_load_within_the_delay(name: str, seconds: float) -> None:
    latency = FAMILIES[name]
    load = latency.load_at(np.full(latency.workers, seconds))
    inside = np.isfinite(load) & (load > 0)
    at = latency(np.where(inside, load * (1 - 1e-9), 0.0))
    past = latency(np.where(inside, load * (1 + 1e-6) + 1e-9, 0.0))
    assert np.all(at[inside] <= seconds * (1 + 1e-6))
    assert np.all(past[inside] >= seconds * (1 - 1e-6))
    nothing = load == 0
    assert np.all(latency(np.zeros(latency.workers))[nothing] >= seconds * (1 - 1e-9))


def test_delays_never_fall_with_load() -> None:
    for latency in FAMILIES.values():
        grid = np.linspace(0, 7.5, 200)[:, None] * np.ones(latency.workers)
        assert np.all(np.diff(latency(grid), axis=0) >= -1e-12)


def test_a_full_worker_is_infinitely_slow() -> None:
    assert np.isinf(MM1(2.0)(2.0))
    assert np.isinf(Saturating(0.1, 0.1, 0.1, 1.0, 4.0)(4.0))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Affine(-1.0, 0.0), "base ≥ 0"),
        (lambda: Affine(0.0, -1.0), "per_unit ≥ 0"),
        (lambda: MM1(0.0), "rate > 0"),
        (lambda: Saturating(0, 0, 0, 5.0, 4.0), "knee < limit"),
        (lambda: Table([1.0, 2.0], [0.2, 0.1]), "non-decreasing"),
        (lambda: Table([1.0], [0.2]), "two points"),
    ],
)
def test_a_wrong_parameter_says_what_was_expected(build, says: str) -> None:
    with pytest.raises(GameError, match=says):
        build()
