import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.observe import Share, Stopwatch, bottleneck, duration
from engine.observe.clock import apportion


class Clock:
    def __init__(self):
        self.time = 1000.1

    def __call__(self):
        return self.time


def _shares(watch):
    return {share.name: pytest.approx(share.seconds, abs=1e-5) for share in watch.shares()}


def test_phases_and_the_rest_make_the_wall_clock():
    clock = Clock()
    watch = Stopwatch(clock)
    clock.time += 1
    for name, seconds in (("plan", 2), ("stream", 6), ("plan", 1)):
        with watch.phase(name):
            clock.time += seconds
    assert _shares(watch) == {"plan": 3, "stream": 6, "other": 1}
    assert [share.name for share in watch.shares()] == ["plan", "stream", "other"]
    assert [round(share.share, 3) for share in watch.shares()] == [0.3, 0.6, 0.1]


def test_a_phase_is_split_in_proportion_to_worker_seconds():
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.phase("stream"):
        clock.time += 12
        watch.split("stream", {"read": 10.0, "lint": 50.0})
        watch.split("stream", {"lint": 30.0, "write": 30.0})
    assert _shares(watch) == {"read": 1, "lint": 8, "write": 3}


def test_a_split_without_seconds_leaves_the_phase_whole_and_bad_seconds_are_refused():
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.phase("stream"):
        clock.time += 1
    watch.split("stream", {"read": 0.0})
    assert _shares(watch) == {"stream": 1}
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="worker seconds"):
            watch.split("stream", {"read": bad})


def test_an_error_inside_a_phase_still_counts_its_time_and_an_open_phase_counts_so_far():
    clock = Clock()
    watch = Stopwatch(clock)
    with contextlib.suppress(KeyError), watch.phase("plan"):
        clock.time += 2
        raise KeyError
    with watch.phase("stream"):
        clock.time += 3
        assert _shares(watch) == {"plan": 2, "stream": 3}


@given(
    phases=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e5), st.floats(0, 10)), max_size=8),
    parts=st.dictionaries(st.sampled_from(["a", "read", "lint", "other"]), st.floats(0, 1e9), max_size=4),
)
def test_shares_add_up_exactly_in_any_order(phases, parts):
    clock = Clock()
    watch = Stopwatch(clock)
    for name, seconds, gap in phases:
        with watch.phase(name):
            clock.time += seconds
        clock.time += gap
    watch.split("a", parts)
    shares = watch.shares()
    seconds = [share.seconds for share in shares]
    wall = clock.time - 1000.1
    assert sum(seconds) == sum(reversed(seconds)) == round(wall * 2**20) / 2**20
    assert all(share.seconds >= 0 for share in shares)
    if wall > 1:
        assert sum(share.share for share in shares) == pytest.approx(1)


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=20), st.integers(0, 2**45))
def test_apportioned_numbers_add_up_and_stay_within_one_of_their_quota(weights, whole):
    counts = apportion(weights, whole)
    assert sum(counts) == whole
    assert all(count >= 0 for count in counts)
    if sum(weights) > 1:
        quotas = [weight / sum(weights) * whole for weight in weights]
        assert all(abs(count - quota) < 1.01 for count, quota in zip(counts, quotas, strict=True))


def test_the_bottleneck_line():
    shares = [Share("read", 14.0, 14 / 48), Share("lint", 34.0, 34 / 48)]
    hints = {"lint": "raise the number of workers"}
    assert bottleneck(shares, hints) == "Bottleneck: lint took 71 % of 48 s; raise the number of workers"
    assert bottleneck(shares) == "Bottleneck: lint took 71 % of 48 s"
    assert bottleneck([]) == "Bottleneck: nothing was measured"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (9.5, "9.5 s"), (9.96, "10 s"), (48.2, "48 s"), (99.7, "1 min 40 s"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
