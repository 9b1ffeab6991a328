"""The ramp: the same requests for every arm, at a rate that goes up and comes back."""

import numpy as np

from wardrop.demo.ramp.profile import PHASES, Profile
from wardrop.demo.ramp.run import ramp_turns


def test_rate_rises_to_the_peak_and_comes_back() -> None:
    profile = Profile(seconds=100.0, low_per_s=10.0, peak=4.0)
    turns = ramp_turns(profile, seed=0)
    starts = np.array([turn.time_s for turn in turns if turn.follows is None])
    counts = np.histogram(starts, bins=5, range=(0, 100))[0]
    assert counts[2] > 2 * counts[4], "new conversations per fifth of the time"
    assert counts[2] > counts[1] > counts[4]
    assert starts.min() >= 0
    assert starts.max() <= 100


def test_virtual_time_and_real_time_are_inverse() -> None:
    profile = Profile(seconds=60.0)
    real = np.linspace(0, 60, 25)
    assert np.allclose(profile.real_s(profile.virtual_s(real)), real, atol=0.05)
    assert [PHASES[i] for i in profile.phase(np.array([1.0, 30.0, 59.0, 90.0]))] == [
        "below",
        "peak",
        "after",
        "after",
    ]


def test_same_seed_same_requests() -> None:
    one, two = (ramp_turns(Profile(seconds=20.0), seed=3) for _ in range(2))
    assert len(one) == len(two)
    assert all((a.tokens == b.tokens).all() for a, b in zip(one, two, strict=True))
