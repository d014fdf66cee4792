"""The comparison with torch: what counts as a difference, and that every section has both halves. No torch."""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import check_metrics_against_torch as check  # noqa: E402


def test_differences_are_relative_to_the_largest_magnitude():
    a = np.array([0.0, 1.0, -100.0])
    assert check.difference(a, a) == 0 and check.difference(np.float32(3), np.float64(2)) == 0.5
    np.testing.assert_allclose(check.difference(a + [0.01, 0, 0], a), 1e-4)
    assert check.difference(a[:2], a) == check.difference(a * np.nan, a) == np.inf


def test_sections_have_what_the_program_asks_for():
    assert "inception" in check.SECTIONS
    for name in check.SECTIONS:
        module = check.section(name)
        if not hasattr(module, "theirs"):
            assert callable(module.make) and callable(module.check)
        else:
            assert module.ABOUT and module.PACKAGES and 0 < module.TOLERANCE <= 1e-3
            assert all(callable(getattr(module, half)) for half in ("inputs", "theirs", "ours"))
