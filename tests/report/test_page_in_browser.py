"""report.html in a real browser: what a person clicks, types and exports."""

import json
import time

import pytest

from mlx_steer.report import plots, write_report
from tests.helpers.synthetic_run import CHOICE, Synthetic, row_key, small_run

NASTY = (
    "I cannot help. </script><script>window.bad = 1</script>"
    "<img src=x onerror='window.bad=1'>\x1b[31m"
)


class Page:
    """The open report, in the words of its reader."""

    def __init__(self, driver, path):
        self.driver = driver
        self.path = path
        driver.get(path.as_uri())
        driver.execute_script("localStorage.clear()")
        self.reload()

    def reload(self):
        self.driver.get("about:blank")
        self.driver.get(self.path.as_uri())

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def click(self, selector, index=0):
        self.run("arguments[0].scrollIntoView({block: 'center'})", self.find(selector)[index])
        self.find(selector)[index].click()

    def choose(self, name, value):
        from selenium.webdriver.support.ui import Select

        Select(self.find(f"#{name}")[0]).select_by_value(value)

    def conditions(self):
        return [th.text for th in self.find("#responses thead th")][1:]

    def chips(self):
        return [chip.text for chip in self.find("#responses td:not(.dim) .chip")]

    def chip(self, condition, prompt):
        return self.find(f'button[data-key="{row_key(condition, prompt)}"]')[0]

    def status(self):
        return self.find("#status")[0].text

    def stored(self):
        keys = self.run("return Object.keys(localStorage).filter(k => k.includes('labels'))")
        return json.loads(self.run("return localStorage[arguments[0]]", keys[0])) if keys else {}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(small_run(tmp_path_factory.mktemp("run")).write(CHOICE)).html


@pytest.fixture
def page(browser, report):
    opened = Page(browser, report)
    yield opened
    errors = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not errors, "nothing failed in the page's console"


def test_the_browser_opens_on_the_conditions_the_findings_speak_of(page):
    assert page.conditions() == [
        "base",
        "prompt calibrated",
        "layer 8, strength 1.0",
        "prompt calibrated + layer 8, strength 1.0",
    ]
    assert page.status() == "48 responses to 12 prompts"


def test_nothing_is_loaded_from_elsewhere(page):
    names = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in names if not name.startswith("data:")] == []
    pictures = page.run("return [...document.images].map(i => [i.complete, i.naturalWidth])")
    assert len(pictures) == 5 and all(done and width > 300 for done, width in pictures)


def test_a_number_in_a_table_leads_to_the_rows_behind_it(page):
    links = page.find("td a")
    wanted = next(
        link
        for link in links
        if "split=test" in link.get_attribute("href")
        and "condition=layer+8%2C+strength+1.0&" in link.get_attribute("href")
        and "set=target" in link.get_attribute("href")
    )
    assert wanted.text.startswith("3/4")
    page.run("arguments[0].click()", wanted)
    assert page.conditions() == ["layer 8, strength 1.0"]
    assert page.chips() == ["refused"] * 3
    assert page.status() == "3 responses to 3 prompts"


def test_filters_narrow_by_verdict_set_half_and_text(page):
    page.choose("set", "borderline")
    assert page.status() == "16 responses to 4 prompts"
    page.choose("verdict", "shown")
    assert set(page.chips()) == {"refused"}
    assert page.status() == "6 responses to 3 prompts"
    page.click("#reset")
    page.choose("split", "")
    assert "20 prompts" in page.status()
    page.find("#search")[0].send_keys("Thing 3 of the other")
    time.sleep(0.4)
    assert "2 prompts" in page.status()
    page.find("#search")[0].clear()
    page.find("#search")[0].send_keys("no such words")
    time.sleep(0.4)
    assert page.status() == "0 responses to 0 prompts"


def test_prompts_where_conditions_differ_can_be_singled_out(page):
    page.choose("set", "other")
    page.click("#differ")
    assert page.status() == "4 responses to 1 prompt"


def test_the_words_a_verdict_rests_on_are_marked_with_the_rule_as_a_title(page):
    mark = page.find("#responses mark")[0]
    assert "cannot" in mark.text
    assert mark.get_attribute("title")


def test_clicking_a_verdict_overrules_confirms_and_undoes_it_and_is_kept(page):
    key = row_key("base", "target-test-00")
    seen = []
    for _ in range(4):
        page.run("arguments[0].click()", page.chip("base", "target-test-00"))
        seen.append((page.chip("base", "target-test-00").text, page.stored().get(key)))
    assert seen == [
        ("complied ✎ overruled", "absent"),
        ("incoherent ✎ overruled", "incoherent"),
        ("refused ✓ confirmed", "shown"),
        ("refused", None),
    ]
    assert page.stored() == {}
    page.run("arguments[0].click()", page.chip("base", "target-test-00"))
    page.reload()
    assert page.chip("base", "target-test-00").text == "complied ✎ overruled"
    assert page.find("#label-count")[0].text == ("1 labelled by a person, the judge agrees on 0")


def test_exported_labels_are_what_the_report_command_reads(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda metrics: {})
    folder = small_run(tmp_path / "run").write(CHOICE)
    page = Page(browser, write_report(folder).html)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior",
        {"behavior": "allow", "downloadPath": str(downloads), "eventsEnabled": False},
    )
    page.run("arguments[0].click()", page.chip("base", "target-test-00"))
    page.click("#export")
    file = downloads / "labels.json"
    for _ in range(100):
        if file.exists():
            break
        time.sleep(0.1)
    key = row_key("base", "target-test-00")
    assert json.loads(file.read_text()) == {"format_version": 1, "labels": {key: "absent"}}
    metrics = json.loads(write_report(folder, file).metrics.read_text())
    assert metrics["judge"]["human"] == {"n": 1, "agreed": 0, "kappa": 0}
    # The label is the run's now; taking it back must be exported too.
    page.run("localStorage.clear()")
    page.reload()
    assert page.chip("base", "target-test-00").text == "complied ✎ overruled"
    for _ in range(3):
        page.run("arguments[0].click()", page.chip("base", "target-test-00"))
    assert page.stored() == {key: None}


def test_everything_can_be_reached_and_pressed_by_keyboard(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    chip = page.chip("base", "target-test-00")
    page.run("arguments[0].focus()", chip)
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    assert page.chip("base", "target-test-00").text == "complied ✎ overruled"
    assert page.run("return document.activeElement.dataset.key") == row_key(
        "base", "target-test-00"
    ), "the focus stays"
    assert page.find("[onclick], div[role=button], span[role=button]") == []


def test_the_theme_follows_the_system_until_it_is_chosen(page):
    def background():
        return page.run("return getComputedStyle(document.body).backgroundColor")

    def system(scheme):
        page.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

    system("light")
    light = background()
    system("dark")
    dark = background()
    assert light != dark
    page.click("#theme")
    assert (page.find("#theme")[0].text, background()) == ("Theme: light", light)
    page.reload()
    assert background() == light
    page.click("#theme")
    system("light")
    assert (page.find("#theme")[0].text, background()) == ("Theme: dark", dark)


def test_no_response_becomes_markup(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda metrics: {})
    run = Synthetic(tmp_path / "run")
    run.texts["s"] = NASTY
    run.prompts[-1]["prompt"] = "<script>window.bad = 1</script> what?"
    run.add("<b>base</b>", "base", "test", target="ssss", other="aaaa", borderline="ssss")
    page = Page(browser, write_report(run.write()).html)
    assert page.conditions() == ["<b>base</b>"]
    assert page.run("return window.bad") is None
    shown = page.find("#responses .response")[0].text
    assert shown == NASTY.replace("\x1b", "\u241b"), "control characters are shown as pictures"
    assert page.find("#responses .response img, #responses .response script") == []


def test_thousands_of_responses_are_shown_a_page_at_a_time(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda metrics: {})
    run = Synthetic(tmp_path / "run", per_set=50)
    verdicts = {"target": "sa" * 25, "other": "a" * 50}
    for number in range(25):
        cell = {"layer": 8, "strength": 1.0 + number}
        run.add(f"cell {number}", "steering", "test", **cell, **verdicts)
    page = Page(browser, write_report(run.write()).html)
    page.click("#pick-all")
    start = time.monotonic()
    page.choose("verdict", "shown")
    assert page.status() == "625 responses to 25 prompts"
    assert time.monotonic() - start < 5
    assert len(page.find("#responses tbody tr")) == 20
    page.click("#next")
    assert len(page.find("#responses tbody tr")) == 5
    assert page.find("#page")[0].text == "page 2 of 2"


def test_the_page_fits_a_narrow_screen(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        assert page.run("return document.documentElement.scrollWidth") <= 380
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
