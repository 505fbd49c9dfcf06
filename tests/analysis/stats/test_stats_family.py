"""Holm's correction."""

from __future__ import annotations

import pytest

from analysis.stats.family import holm


def test_demsars_example():
    # Demšar 2006, section 3.2.2: three classifiers against a control. The first two are rejected at .05.
    assert holm([0.016, 0.019, 0.607]) == pytest.approx([0.048, 0.048, 0.607])


def test_holms_steps_by_hand():
    # 0.01 × 4, 0.02 × 3, 0.03 × 2 (not below the step before), 0.04 × 1 (likewise).
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_never_above_one_and_never_below_itself():
    assert holm([0.9, 0.8, 0.5]) == [1.0, 1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
