import numpy as np
import pytest

from offramp.scoring.calibration import BINS, expected_calibration_error, reliability_diagram


def naive_ece(confidence, correct):
    total = 0.0
    for bin in range(BINS):
        low, high = bin / BINS, (bin + 1) / BINS
        inside = [i for i, c in enumerate(confidence) if low <= c < high or (bin == BINS - 1 and c >= 1.0)]
        if inside:
            gap = np.mean(confidence[inside]) - np.mean(correct[inside])
            total += abs(gap) * len(inside) / len(confidence)
    return total


def test_ece_equals_a_plain_loop():
    generator = np.random.default_rng(0)
    confidence = generator.random(500).astype(np.float32)
    correct = generator.random(500) < confidence**2
    diagram = reliability_diagram(3, confidence, correct)
    assert expected_calibration_error(diagram) == pytest.approx(naive_ece(confidence.astype(float), correct))
    assert diagram.count.sum() == 500


def test_diagram_by_hand_with_both_ends_and_empty_bins():
    confidence = np.array([0.0, 1.0, 1.0, 0.5], dtype=np.float32)
    diagram = reliability_diagram(7, confidence, np.array([True, True, False, True]))
    assert diagram.exit == 7
    assert diagram.count.tolist() == [1] + [0] * 6 + [1] + [0] * 6 + [2]
    assert diagram.agreement[[0, 7, 14]].tolist() == [1.0, 1.0, 0.5]
    assert np.isnan(diagram.confidence[1])
    # Gaps 1, 0.5 and 0.5 with weights 1/4, 1/4, 2/4.
    assert expected_calibration_error(diagram) == pytest.approx(0.25 + 0.125 + 0.25)


def test_a_probability_rounded_above_one_stays_in_the_last_bin():
    diagram = reliability_diagram(1, np.array([1.0000001], dtype=np.float32), np.array([True]))
    assert diagram.count[-1] == 1
