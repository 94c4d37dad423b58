"""The ramp: right conversions, ordered lightness, readable text."""

import pytest

from offramp.report.plot.drawing import (
    DARK_RAMP,
    LIGHT_RAMP,
    contrast,
    hexadecimal,
    luminance,
    oklch_to_rgb,
    ramp_rules,
    readable_on,
)


def test_oklch_of_known_colours():
    # Published OKLCH coordinates of white, black and pure sRGB red.
    assert hexadecimal(oklch_to_rgb(1.0, 0.0, 0.0)) == "#ffffff"
    assert hexadecimal(oklch_to_rgb(0.0, 0.0, 0.0)) == "#000000"
    assert oklch_to_rgb(0.6279554, 0.2576833, 29.2338812) == pytest.approx((1.0, 0.0, 0.0), abs=0.01)


def test_contrast_of_black_and_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize(("ramp", "sign"), [(LIGHT_RAMP, 1), (DARK_RAMP, -1)])
def test_lightness_orders_the_layers_and_text_stays_readable(ramp, sign):
    colours = [ramp.colour(step / 29) for step in range(30)]
    brightness = [sign * luminance(colour) for colour in colours]
    assert brightness == sorted(brightness)
    assert len(set(colours)) == 30
    assert min(contrast(colour, readable_on(colour)) for colour in colours) >= 4.5


@pytest.mark.parametrize("layers", [1, 2, 80])
def test_every_layer_has_a_class_in_both_themes(layers):
    rules = ramp_rules(layers)
    for layer in range(1, layers + 1):
        assert rules.count(f".e{layer}{{") == 2
