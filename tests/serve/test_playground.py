"""The playground in a real browser: what a person drags, clicks, types and takes along."""

import json
import time

import pytest


class Playground:
    """The open page, in the words of its reader."""

    def __init__(self, driver, address):
        self.driver = driver
        self.address = address
        self.open()

    def open(self, link=""):
        self.driver.get("about:blank")
        self.driver.get(link or self.address)
        self.until(lambda: self.text("#model") != "connecting…")

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def until(self, holds, seconds=20):
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, self.text("#status")
            time.sleep(0.05)

    def set(self, selector, value, index=0):
        """As a person does it: the value, then the event that the page listens to."""
        self.run(
            "const e = document.querySelectorAll(arguments[0])[arguments[2]];"
            "e.value = arguments[1]; for (const kind of ['input', 'change'])"
            " e.dispatchEvent(new Event(kind, {bubbles: true}))",
            selector,
            value,
            index,
        )

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def ask(self, text):
        self.set("#tokens", "12")
        self.set("#prompt", text)
        self.click("#send")
        self.until(lambda: self.run("return document.querySelector('#send').disabled") is False)
        assert "warn" not in self.run("return document.querySelector('#status').className")
        return self.text("#base"), self.text("#steered")

    def complaints(self):
        return [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(browser, address):
    opened = Playground(browser, address)
    opened.complaints()
    return opened


def test_both_answers_come_coloured_by_projection(page, chat):
    page.set("input[type=range]", "0.6")
    base, steered = page.ask("What is the capital of France?")
    expected = chat("What is the capital of France?", max_tokens=12).json()
    assert base == expected["choices"][0]["message"]["content"] != steered
    colours = page.run(
        "return [...document.querySelectorAll('#steered span')].map(s => s.style.background)"
    )
    # The last piece may be what is left of a character that no token finished.
    assert len(colours) > 1 and all(colour.startswith("rgba") for colour in colours[:-1])
    assert "tokens" in page.text("#steered-note")
    page.click("#colour")
    assert page.run("return document.querySelector('#steered span').style.background") == ""
    assert page.complaints() == []


def test_what_is_set_is_what_is_asked_for_and_can_be_taken_along(page, chat):
    page.set("#vectors select[aria-label=Layer]", "3")
    page.set("input[type=range]", "0.5")
    page.set("#vectors select[aria-label=Gate]", "shut")
    base, steered = page.ask("Hello there")
    assert base == steered and "gate shut" in page.text("#steered-note")
    page.set("#vectors select[aria-label=Gate]", "open")
    base, steered = page.ask("Hello there")
    assert base != steered and "gate open" in page.text("#steered-note")
    curl = page.text("#curl")
    sent = json.loads(curl[curl.index("{") : curl.rindex("}") + 1])
    assert sent["steering"][0] | {"layer": 3, "gate": "open"} == sent["steering"][0]
    again = chat(**{**sent, "max_tokens": 12}).json()
    assert again["choices"][0]["message"]["content"] == steered


def test_the_python_that_is_shown_runs(page, address):
    page.set("input[type=range]", "0.4")
    _, steered = page.ask("It's \"quoted\", isn't it?\nYes")
    printed = []
    exec(page.text("#python"), {"print": printed.append})
    assert printed == [steered]


def test_a_link_brings_back_the_condition_and_the_prompt(page):
    page.set("#vectors select[aria-label=Layer]", "1")
    page.set("input[type=range]", "-0.3")
    page.set("#prompt", "Shared?")
    page.click("#link")
    link = page.driver.current_url
    page.open(link)
    assert page.run("return document.querySelector('#prompt').value") == "Shared?"
    assert (
        page.run("return document.querySelector('#vectors select[aria-label=Layer]').value") == "1"
    )
    dose = page.run("return document.querySelector('input[type=range]').value")
    assert float(dose) == pytest.approx(-0.3, abs=0.011)


@pytest.mark.parametrize(
    "link",
    ["#%", "#{}", '#{"steering":[{"vector":"__proto__"},null,5]}',
     '#{"steering":[{"vector":"brevity","layer":"<img src=x onerror=window.bad=1>"}]}'],
)  # fmt: skip
def test_a_link_from_a_stranger_can_do_no_harm(page, link):
    page.open(page.address + "/" + link)
    page.ask("Hi")
    assert page.run("return window.bad === undefined")
    assert page.complaints() == []


def test_several_vectors_act_together_and_are_saved_as_a_preset(page, client):
    page.click("#add")
    assert page.run("return document.querySelectorAll('.vector').length") == 2
    page.set("input[type=range]", "0.3", 1)
    page.set("#name", "both")
    page.click("#save")
    page.until(lambda: "both" in page.text("#saved"))
    presets = client.get("/v1/vectors").json()["presets"]
    assert len(presets["both"]) == 2
    page.open()
    page.set("#preset", "both")
    assert page.run("return document.querySelectorAll('.vector').length") == 2
    page.click(".vector button")
    assert page.run("return document.querySelectorAll('.vector').length") == 1
    assert page.run("return document.querySelector('#preset').value") == ""


def test_what_the_server_refuses_is_shown(page):
    page.set("#tokens", "100000")
    page.click("#send")
    page.until(lambda: page.text("#status") != "")
    assert "shorten" in page.text("#status")


def test_stop_ends_both_answers(page, scheduler):
    page.set("#tokens", "150")
    page.set("#temperature", "2")
    page.click("#send")
    page.until(lambda: page.text("#base") != "")
    page.click("#stop")
    page.until(lambda: page.run("return document.querySelector('#send').disabled") is False)
    page.until(lambda: scheduler.load().running == 0)


@pytest.mark.parametrize("width", [360, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_all_text_can_be_read(page, width, scheme):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    try:
        page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
        page.ask("Write a long answer")
        assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
        ground, ink = page.run(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
        assert abs(_light(ground) - _light(ink)) > 150
        assert (_light(ground) < 80) == (scheme == "dark")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_all_controls_have_names_and_can_be_reached_by_keyboard(page):
    unnamed = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea')].filter(e =>"
        " !(e.textContent.trim() || e.getAttribute('aria-label') || e.closest('label')"
        " || document.querySelector(`label[for=${e.id}]`))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.run("return document.querySelectorAll('[tabindex=\"-1\"]').length") == 0


def _light(colour):
    red, green, blue = map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue
