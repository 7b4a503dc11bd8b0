import io

from rich.console import Console

from engine.observe import Share, closing


def _printed(renderable, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable, crop=False)
    return console.file.getvalue()


def _shares(**seconds):
    wall = sum(seconds.values())
    return [Share(name, value, value / wall if wall else 0.0) for name, value in seconds.items()]


def test_it_says_what_was_published_where_the_time_went_and_what_comes_next(capsys):
    shares = _shares(plan=1.0, read=6.0, lint=34.0, write=7.0)
    shown = closing("runs/a", {"rows": 2104, "rate": "35/s"}, shares, "headrace sft x.yaml", {"lint": "add workers"})
    assert capsys.readouterr() == ("", "")
    text = _printed(shown)
    assert "Published: runs/a" in text
    assert "2,104" in text
    assert "Bottleneck: lint took 71 % of 48 s; add workers" in text
    assert "Next: headrace sft x.yaml" in text


def test_percentages_add_up_to_a_hundred():
    text = _printed(closing("x", {}, _shares(a=1.0, b=1.0, c=1.0), ""))
    rows = [line.split() for line in text.splitlines() if line.strip()[:2] in ("a ", "b ", "c ")]
    assert sum(int(row[row.index("%") - 1]) for row in rows) == 100
    assert "Next" not in text


def test_long_paths_are_not_cut_and_brackets_are_no_markup():
    path = "runs/[red]/" + "x" * 200
    text = _printed(closing(path, {"[bold]": "[/bold]"}, [], "headrace [x]"), width=60)
    assert path in text
    assert "[/bold]" in text
    assert "headrace [x]" in text


def test_nothing_measured_is_no_failure():
    assert "nothing was measured" in _printed(closing("x", {}, _shares(a=0.0), "y"))
