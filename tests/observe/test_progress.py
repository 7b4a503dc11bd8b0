import io
import sys

import pytest

from engine.observe import Progress


class Clock:
    time = 50.0

    def __call__(self):
        return self.time


def test_elsewhere_than_on_a_terminal_a_line_every_ten_seconds_and_a_last_one(capsys):
    clock = Clock()
    with Progress("lintseq", 2104, "programs", done=68, now=clock) as progress:
        for _ in range(25):
            clock.time += 1
            progress.advance(35)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "lintseq  418/2104 programs  19%  35.0/s  48 s left"
    assert len(lines) == 3
    assert lines[-1] == "lintseq  943/2104 programs  44%  35.0/s  in 25 s"


def test_the_rate_forgets_a_slow_start_and_counts_only_new_work():
    clock = Clock()
    with Progress("read", 100_000, "rows", done=50_000, now=clock) as progress:
        clock.time += 300
        for _ in range(100):
            clock.time += 1
            progress.advance(10)
        assert "  10.0/s" in progress.status()


def test_an_unknown_total_shows_what_is_known(capsys):
    clock = Clock()
    with Progress("read", None, "rows", now=clock) as progress:
        clock.time += 12
        progress.advance(6)
    assert capsys.readouterr().err.splitlines()[0] == "read  6 rows  30.0/min  12 s"


def test_no_work_too_low_a_total_and_extras(capsys):
    clock = Clock()
    with Progress("read", 0, "rows", now=clock):
        pass
    with Progress("read", 3, "rows", now=clock) as progress:
        clock.time += 1
        progress.advance(5, kept=4)
        progress.advance(0, kept=5, file="a [b].py")
        assert progress.status() == "5/3 rows  100%  5.0/s  0.00 s left  kept 5  file a [b].py"
    assert capsys.readouterr().err.splitlines()[0] == "read  0/0 rows  100%  in 0.00 s"


def test_a_failure_says_that_it_stopped(capsys):
    with pytest.raises(KeyboardInterrupt), Progress("read", 10, "rows"):
        raise KeyboardInterrupt
    assert "0/10 rows  0%  stopped after" in capsys.readouterr().err


def test_on_a_terminal_a_bar_that_takes_texts_as_they_are(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("sieve [/x]", 10, "rows", done=4) as progress:
        progress.advance(6)
        assert sys.stderr is not terminal  # lines printed meanwhile go above the bar
    assert sys.stderr is terminal
    assert "sieve [/x]" in terminal.getvalue()
    assert "10/10 rows  100%" in terminal.getvalue()
