"""Templates: values are escaped, names that are not given are refused, lines of a template leave no trace."""

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from offramp.report.html import Column, Joined, bullets, cards, environment, figure, fragment, stack, table

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


def test_values_are_escaped_in_text_and_attributes():
    made = [
        table([HOSTILE], [[HOSTILE]], caption=HOSTILE),
        cards(
            [Column(HOSTILE), Column(HOSTILE)], {HOSTILE: [[HOSTILE, HOSTILE]]}, caption=HOSTILE, style="x"
        ),
        figure(HOSTILE, HOSTILE, HOSTILE, HOSTILE, legend=HOSTILE),
        bullets([HOSTILE], "note"),
        stack(HOSTILE, HOSTILE),
    ]
    for html in made:
        assert "<img" not in html
        assert "&lt;img" in html


def test_pieces_that_are_html_already_stay():
    assert stack(Markup("<b>bold</b>"), "a < b") == "<b>bold</b><small>a &lt; b</small>"
    assert stack("alone", "", "") == "alone"


def test_a_number_stays_with_its_unit_in_text_and_not_in_attributes():
    html = table(["Name", "Value"], [["a", "1.5 ms"]], caption="at 95 % agreement")
    assert "1.5\u00a0ms" in html
    assert "<caption>at 95\u00a0% agreement</caption>" in html
    assert 'aria-label="at 95 % agreement"' in html


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(UndefinedError):
        fragment("macros", "bullets")


def test_lines_of_a_template_are_joined():
    source = "<p>\n  one 5 % of\n  {{ a }} two\n</p>\n{% if a %}\n<i>x</i>\n{% endif %}\n{{ a }}\n{{ a }}\n"
    joined = Joined(environment()).preprocess(source, None)
    assert joined == "<p>one 5\u00a0% of {{ a }} two</p>{% if a %}<i>x</i>{% endif %}{{ a }}{{ a }}"
