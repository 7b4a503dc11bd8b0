import re
from html.parser import HTMLParser

import pytest
from upath import UPath

from engine.errors import StorageError
from engine.observe import Report, Share, plots

NASTY = 'x = "</script><script>alert(1)</script>"  # <b> & {{ 7 * 7 }} \x00'


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "path", "use"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _full_report():
    shares = [Share("read", 1.0, 0.25), Share("lint", 3.0, 0.75)]
    report = Report(f"title {NASTY}", f"subtitle {NASTY}")
    report.facts({"rows": 2104, NASTY: NASTY, "rate": 0.61234})
    report.text("text", NASTY, "one\n\ntwo")
    report.table("table", ["file", NASTY], [[NASTY, 1234], ["b", None]], note=NASTY)
    report.figure("time", plots.waterfall(shares), note=NASTY)
    report.figure("time again", plots.waterfall(shares))
    report.code("code", NASTY, "python")
    report.growth("growth", [NASTY, f"{NASTY}\n{NASTY}\n"], note=NASTY)
    return report


def test_everything_given_is_shown_as_text():
    html = _full_report().html()
    page = Page(html)
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "b" not in {tag for tag, _ in page.tags}
    assert page.text.count("</script><script>alert(1)</script>") >= 12
    assert "{{ 7 * 7 }}" in page.text
    assert "\x00" not in html
    assert all(number in page.text for number in ("2,104", "0.6123", "1,234", "–"))


def test_the_page_stands_alone_and_forbids_itself_the_network():
    html = _full_report().html()
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "base", "object")
        assert "src" not in attributes
        assert all(name != "href" or value.startswith("#") for name, value in attributes.items())
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", html)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_ids_are_unique_and_references_lead_somewhere():
    page = Page(_full_report().html())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#")[1:] in ["", *ids]
        for anchor in re.findall(r"url\(#([^)]+)\)", str(attributes)):
            assert anchor in ids
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_a_growing_program_shows_every_state_with_its_new_lines_marked():
    report = Report("x")
    report.growth("growth", ["a\n", "a\nb\n\n", "a\n\nb\n\n", "z\nb\n"])
    html = report.html()
    states = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    new = [re.sub(r"<[^>]*>", "", "|".join(re.findall(r"<ins.*?</ins>", state, re.DOTALL))) for state in states]
    assert [text.replace("\n", "") for text in new] == ["a", "b|", "", "z"]
    assert "Edit 2 of 4</strong> · 2 lines inserted, 3 in all" in html
    assert "1 line inserted, 4 in all" in html


@pytest.mark.parametrize(
    "source",
    [
        'x = """\n\n  two\n"""\n',
        "\n\n\nx = 1",
        "a\r\nb\rc",
        "\tif x:\n\t\treturn\n",
        "\x0c\u2028x\x85y\n",
        "",
        "\n",
        "def (:\n'",
    ],
)
def test_a_listing_keeps_every_line(source):
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    report = Report("x")
    report.code("code", source, "python")
    (listing,) = re.findall(r"<code>(.*?)</code>", report.html(), re.DOTALL)
    text = Page(listing).text
    assert text == "".join(f"{line}\n" for line in lines).replace("\x0c", "\ufffd")


def test_empty_sections_say_so():
    report = Report("x")
    assert "Nothing was reported." in report.html()
    report.table("t", ["a"], [])
    report.growth("g", [])
    report.text("n", "")
    report.facts({})
    report.code("c", "", "no such language")
    assert {"No rows.", "No edits to show."} <= {line.strip() for line in Page(report.html()).text.splitlines()}


@pytest.mark.parametrize(
    "svg",
    [
        "",
        "<b>",
        "<svg",
        "<svg><script>x</script></svg>",
        '<svg onload="x"></svg>',
        '<svg><use href="http://x/y"/></svg>',
        "<svg><foreignObject/></svg>",
        '<svg xmlns="http://www.w3.org/2000/svg"><image href="#x"/></svg>',
    ],
)
def test_a_figure_is_a_drawing_and_nothing_else(svg):
    with pytest.raises(ValueError, match="figure"):
        Report("x").figure("y", svg)


def test_columns_of_numbers_stand_right():
    report = Report("x")
    report.table("t", ["name", "rate", "mixed"], [["a", "35.2/s", 1], ["b", None, "three rows"]])
    assert re.findall(r'class="number">(.*?)<', report.html()) == ["rate", "35.2/s", "–"]


def test_it_is_written_whole_with_surrogates_replaced_and_the_same_every_time(tmp_path):
    path = UPath(tmp_path / "runs" / "report.html")
    report = _full_report()
    report.text("broken", "\ud800")
    report.write(path)
    first = path.read_bytes()
    report.write(path)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        report.write(UPath(tmp_path / "file" / "run" / "report.html"))
