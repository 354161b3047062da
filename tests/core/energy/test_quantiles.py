"""Short arrays' quantiles are numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perseusd.core.energy.quantiles import median, quantile

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40).map(np.array)


@given(values, st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values: np.ndarray, share: float) -> None:
    """Any share of one or more values, in any order, is interpolated alike."""
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), abs=1e-9)
    assert median(values) == pytest.approx(float(np.median(values)), abs=1e-9)
