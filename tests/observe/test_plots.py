import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from engine.observe import Report, Share, plots


def _texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if "text" in element.tag]


def test_a_histogram_has_a_bar_per_number_and_its_labels_as_text():
    svg = plots.histogram({1: 5, 2: 9, 20: 1}, "edits", "programs")
    assert {"edits", "programs"} <= set(_texts(svg))
    assert svg.count("fill: var(--plot-1") == 3


def test_a_wide_histogram_is_gathered_into_bins_that_lose_nothing():
    svg = plots.histogram(dict.fromkeys(range(100_000), 1), "tokens", "rows")
    assert svg.count("fill: var(--plot-1") <= 60
    assert "tokens (bins of 1,667)" in _texts(svg)


def test_bars_show_their_values_and_gather_a_long_tail():
    assert {"too long", "412"} <= set(_texts(plots.bars({"too long": 412, "": 0})))
    texts = _texts(plots.bars({f"reason {i}": 2 for i in range(40)}))
    assert {"reason 28", "11 more", "22"} <= set(texts)
    assert "reason 29" not in texts


def test_lines_leave_gaps_for_what_is_not_finite_and_thin_long_series():
    svg = plots.lines(
        {"loss": ([0, 1, 2], [1.0, float("nan"), float("inf")]), "held out": ([0], [1.0])}, "step", "nats"
    )
    assert {"loss", "held out", "step", "nats"} <= set(_texts(svg))
    many = list(range(200_000))
    assert len(plots.lines({"loss": (many, [i % 7 for i in many])}, log_y=True)) < 200_000


def test_parallel_coordinates_name_axes_ends_and_choices_and_draw_a_line_per_row():
    rows = [[1e-5, "cosine", 0.3, 0.5], [1e-3, "constant", None, 0.7], [1e-4, "cosine", 0.1, 0.6]]
    svg = plots.parallel(["optimiser.rate", "schedule", "final", "loss"], rows, best_is_low=True)
    assert {"rate", "schedule", "final", "loss", "1e-05", "0.001", "constant", "0.5", "0.7"} <= set(_texts(svg))
    assert svg.count("stroke: var(--plot-1") >= 2
    assert "stroke: var(--plot-2" in svg
    assert "No data to show" in plots.parallel(["loss"], [[1.0]], best_is_low=True)
    plots.parallel(["all alike", "loss"], [[True, 1.0], [True, 1.0]], best_is_low=False)


def test_the_waterfall_names_every_share_and_the_whole():
    shares = [Share("read", 1.0, 0.25), Share("lint", 3.0, 0.75), Share("other", 0.0, 0.0)]
    texts = _texts(plots.waterfall(shares))
    assert {"wall clock", "read", "lint", "other", "1.0 s · 25 %", "3.0 s · 75 %"} <= set(texts)


@pytest.mark.parametrize(
    "svg",
    [
        lambda: plots.histogram({}, "x", "y"),
        lambda: plots.bars({}),
        lambda: plots.lines({}),
        lambda: plots.lines({"loss": ([], [])}),
        lambda: plots.lines({"loss": ([1], [float("nan")])}),
        lambda: plots.waterfall([]),
        lambda: plots.waterfall([Share("read", 0.0, 0.0)]),
    ],
)
def test_no_data_gives_a_drawing_that_says_so(svg):
    assert _texts(svg()) == ["No data to show"]


def test_awkward_data_and_labels_never_fail():
    plots.histogram({-3: 0}, "$x", "日本 \U0001f600")
    plots.histogram({0: 0, 1: 0}, "x", "y")
    plots.bars({"a": 0})
    plots.bars({"a": -2.5, "b": float("nan")})
    svg = plots.bars({"</text><script>x</script>": 1, "$\\frac{": 2, "日本\x00\x1b\ud800": 3, "only = 5": 1.5})
    assert "<script" not in svg
    assert "only = 5" in _texts(svg)
    Report("x").figure("y", svg)


def test_the_same_data_gives_the_same_bytes_in_another_process_and_whatever_the_user_configured():
    program = "from engine.observe import plots; print(plots.bars({'a': 1, 'b': 2}))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plots.bars({"a": 1, "b": 2}) == other.removesuffix("\n")
        assert matplotlib.rcParams["font.size"] == 30
    assert not re.search(r"20\d\d-\d\d", other)


def test_colours_follow_the_page_and_the_background_is_clear():
    svg = plots.lines({"a": ([1, 2], [3, 4])})
    assert not re.findall(r"(?:fill|stroke): #", svg)
    assert "<style" not in svg
    assert "width=" not in svg[: svg.index(">")]
