"""Small charts: what is drawn is where the figures are."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_ldu.analysis.report.chart import HEIGHT, WIDTH, Series, draw_chart


def chart(figures, places=None, **options):
    places = places or list(range(1, len(figures) + 1))
    return draw_chart(("t", "x", "y"), places, [Series("look", figures)], marked_ranks=(2, 8), **options)


def points(drawn):
    ((_, path),) = drawn.lines
    return [(int(x), int(y)) for x, y in re.findall(r"[ML](-?\d+) (-?\d+)", path)]


def test_corners():
    drawn = points(chart([1.0, 1.15**3], [1, 100]))
    assert [x for x, _ in drawn] == [0, WIDTH]
    # 15 % of room at either end, on a logarithmic axis of five such steps
    assert [y for _, y in drawn] == [HEIGHT * 4 // 5, HEIGHT // 5]


def test_axes_are_logarithmic():
    (_, (middle, level), _) = points(chart([1.0, 10.0, 100.0], [1, 10, 100]))
    assert (middle, level) == (WIDTH / 2, HEIGHT / 2)


def test_gaps_and_what_has_no_logarithm():
    ((_, path),) = chart([1.0, None, 2.0, 3.0, math.inf, 0.0, 4.0]).lines
    assert re.sub(r"[\d ]", "", path) == "MMLM"


def test_figures_below_the_least_leave_the_chart():
    drawn = points(chart([1.0, 1e-9], least=1e-2))
    assert drawn[1][1] > HEIGHT


def test_mark_is_within():
    assert 0 < chart([0.1, 0.2], mark=1.0).mark < HEIGHT
    assert chart([0.1, 0.2]).mark is None


@pytest.mark.parametrize("figures", [[0.0], [None], [1.0], [math.inf, math.inf]])
def test_nothing_to_draw_is_no_error(figures):
    assert len(points(chart(figures))) <= 1


@given(
    st.lists(st.none() | st.floats(min_value=0.0, max_value=1e30), min_size=1, max_size=60),
    st.sampled_from([0.0, 1e-2]),
    st.sampled_from([None, 1.0]),
)
def test_everything_is_inside(figures, least, mark):
    drawn = chart(figures, least=least, mark=mark)
    for x, y in points(drawn):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT + 50
    for tick in drawn.y_ticks:
        assert 0 <= tick.at <= HEIGHT
    assert [tick.at for tick in drawn.x_ticks] == sorted({tick.at for tick in drawn.x_ticks})
    assert drawn.x_ticks[-1].text == str(len(figures))
