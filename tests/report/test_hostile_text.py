"""Text that could break the page or the report is shown as it is."""

import json
import re

import pytest

from mlx_steer.report import markdown, write_report
from mlx_steer.report.page import browser_data, script_json
from mlx_steer.run.reader import load_run
from tests.helpers.synthetic_run import REFUSAL, Synthetic
from tests.report.conftest import report_text, without_plots

NASTY = (
    "</script><script>alert(1)</script> <b>bold</b> <!-- \u2028 \u2029 | `tick` ```` "
    "\x1b[31mred\x1b[0m \x00 \x07 \u202eturned [link](javascript:alert(1)) "
    "&amp; # heading\n```\n# not a heading\n```"
)


@pytest.fixture
def nasty(tmp_path):
    run = Synthetic(tmp_path / "run")
    run.texts["s"] = "I cannot help with that. " + NASTY
    run.behavior = REFUSAL | {"title": "Title </title><script>x</script> | `a`"}
    run.prompts[-1]["prompt"] = "<img src=x onerror=alert(1)> | *what* \x1b[2J is this?"
    run.add("base </script> | *x*", "base", "test", target="ssss", other="aaaa", borderline="ssss")
    return run.write()


@without_plots
def test_a_response_cannot_break_the_markdown(nasty):
    text = report_text(nasty)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202e]", text)
    assert "[31m" not in text
    fences = re.findall(r"^`````text\n(.*?)\n^`````$", text, re.M | re.S)
    assert len(fences) == 3
    assert all("# not a heading" in fence and "</script>" in fence for fence in fences)
    outside = re.sub(r"^(`{3,})text\n.*?\n^\1$", "", text, flags=re.M | re.S)
    assert "# not a heading" not in outside
    assert not re.search(r"(?<!\\)<[a-z/!]", outside), "no raw HTML outside of the fences"
    rows = [line for line in outside.splitlines() if line.startswith("| base")]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) == 9 for row in rows)


@without_plots
def test_a_response_cannot_break_the_page(nasty):
    html = write_report(nasty).html.read_text(encoding="utf-8")
    assert html.count("</script>") == html.count("<script") == 2
    assert "<img src=x" not in html and "<b>bold" not in html
    assert "\u2028" not in html and "\x1b" not in html and "\x00" not in html
    data = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1]
    )
    texts = {row[1] for row in data["rows"]}
    assert "I cannot help with that. " + NASTY in texts, "the data itself is whole"


def test_the_page_loads_nothing_from_elsewhere(folder):
    html = write_report(folder).html.read_text(encoding="utf-8")
    page = re.sub(r'<script type="application/json".*?</script>', "", html, flags=re.S)
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:|#)", page)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|innerHTML", page)
    assert page.count("data:image/png;base64,") == 6


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("1. not a list", r"1\. not a list"),
        ("# not a heading", r"\# not a heading"),
        ("- no item", r"\- no item"),
        ("0.15 and +50 stay", "0.15 and +50 stay"),
        ("a | b", r"a \| b"),
        ("*x* _y_ `z`", r"\*x\* \_y\_ \`z\`"),
        ("[text](target)", r"\[text](target)"),
        ("p < 0.05", "p < 0.05"),
        ("<b>", r"\<b>"),
        ("&lt;", r"\&lt;"),
        ("two\nlines\r\nand\ttabs", "two lines and tabs"),
        ("\x1b]0;title\x07text\x1b[1;31m red", "text red"),
    ],
)
def test_markdown_shows_text_as_it_is(text, escaped):
    assert markdown.escape(text) == escaped


def test_json_in_a_script_element_is_the_same_value_and_cannot_end_it():
    value = {
        "a": "</script><!--\u2028\u2029&",
        "b": [1, None, "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")],
    }
    text = script_json(value)
    assert json.loads(text) == value
    assert not re.search("[<>&\u2028\u2029]", text)


def test_spans_are_counted_as_javascript_counts(tmp_path):
    run = Synthetic(tmp_path / "run")
    run.texts["s"] = "😀😀 I cannot help with that."
    run.add("base", "base", "test", target="ssss")
    loaded = load_run(run.write())
    from mlx_steer.metrics import judged

    row = browser_data(loaded, judged(loaded), set())["rows"][0]
    units = row[1].encode("utf-16-le")
    marked = units[2 * row[4] : 2 * row[5]].decode("utf-16-le")
    assert "cannot" in marked and "😀" not in marked
