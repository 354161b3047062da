"""What is published of a GPU model stands in until it is measured, and says how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from perseusd.core.learned.family import KNOTS
from perseusd.core.learned.priors import prior_for

PUBLISHED = {
    # model: (top MHz, least-energy clocks, time there, energy there), relative to the top clock's
    "NVIDIA A100-SXM4-80GB": (1410, (1065, 1080), (1.20, 1.25), (0.68, 0.74)),
    "NVIDIA A40": (1740, (945, 1140), (1.12, 1.25), (0.72, 0.81)),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_priors_pass_through_what_is_published(model: str) -> None:
    """At the published least-energy clocks, time and energy lie within what is published."""
    prior = prior_for(model)
    assert prior is not None
    top_mhz, clocks, times, energies = PUBLISHED[model]
    x = top_mhz / (sum(clocks) / 2)
    time = float(prior.time.at(x))
    assert times[0] <= time <= times[1]
    assert energies[0] <= time * float(prior.power.at(x)) <= energies[1]


@pytest.mark.parametrize("model", [*PUBLISHED, "NVIDIA H100 80GB HBM3", "NVIDIA A800-SXM4-80GB"])
def test_priors_are_curves_of_a_gpu(model: str) -> None:
    """Never faster and never drawing more at a lower clock, 1 at the top clock, energy least
    somewhere between; with a spread and a source."""
    prior = prior_for(model)
    assert prior is not None
    time, power = prior.time.at(KNOTS), prior.power.at(KNOTS)
    assert time[0] == power[0] == 1
    assert (np.diff(time) >= 0).all()
    assert (np.diff(power) <= 0).all()
    assert 0 < int(np.argmin(time * power)) < len(KNOTS) - 1
    assert prior.time_spread >= 0.2
    assert prior.power_spread >= 0.2
    assert prior.source


@pytest.mark.parametrize("model", ["", "Tesla V100-SXM2-16GB", "NVIDIA A4000", "Radeon"])
def test_nothing_is_said_of_other_models(model: str) -> None:
    """A name that only resembles a known one is not that one."""
    assert prior_for(model) is None
