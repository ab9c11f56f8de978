"""The service's page in a real browser: a training from the form to its end, by hand and by keyboard alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from services import Served, make_store

PICTURES = os.environ.get("SPLINTERP_PICTURES")  # a folder for the README's pictures
PHONE = 390


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("page") / "root"
    root.mkdir()
    make_store(root / "acts.zarr")
    with Served(root, "--threads", "1") as served:
        yield served


@pytest.fixture
def see(browser):
    """Wait until something is so in the browser; what it then is."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    # A part that is being replaced is asked again.
    return lambda so: WebDriverWait(browser, 120, ignored_exceptions=(StaleElementReferenceException,)).until(so)


def click(browser, see, css: str) -> None:
    """Click on what may be replaced at any moment."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    def clicked(_) -> bool:
        try:
            browser.find_element("css selector", css).click()
        except (NoSuchElementException, StaleElementReferenceException):
            return False
        return True

    see(clicked)


def text(browser, css: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0])?.textContent.trim() ?? ''", css)


def picture(browser, name: str) -> None:
    if PICTURES:
        browser.save_screenshot(str(Path(PICTURES) / name))


def complaints(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def fill(browser, **values: str) -> None:
    for name, value in values.items():
        field = browser.find_element("id", f"f-{name}")
        field.clear()
        field.send_keys(value)


def test_a_training_is_started_watched_stopped_resumed_and_ends(served, browser, see):
    browser.get(f"{served.url}/new/train")
    assert browser.find_element("id", "f-method").get_attribute("value") == "pam"  # the command's own default
    fill(browser, store="acts.zarr", latents="64", k="4", tokens="400k", out="runs/from-the-page", job_label="by hand")
    browser.execute_script("scrollTo(0, 0)")
    picture(browser, "service-form.png")
    click(browser, see, "#submit")
    see(lambda _: "/job/" in browser.current_url)
    job = int(browser.current_url.rpartition("/")[2])
    curve = "return document.querySelector('.curve polyline')?.getAttribute('points') ?? ''"
    first = see(lambda _: browser.execute_script(curve))
    see(lambda _: browser.execute_script(curve) != first)  # it moves, and nobody has reloaded the page
    picture(browser, "service-job.png")
    assert text(browser, "main .state") == "running"

    click(browser, see, f"#stop-{job}")
    see(lambda _: text(browser, "main .state") == "stopped")
    assert "holds a checkpoint" in text(browser, ".message")
    click(browser, see, f"#resume-{job}")
    see(lambda _: text(browser, "main .state") == "running")
    assert "--resume" in text(browser, ".command")
    see(lambda _: text(browser, "main .state") == "done")
    assert served.client.run("runs/from-the-page")["state"] == "finished"

    click(browser, see, "#run")
    see(lambda _: "/run/" in browser.current_url)
    assert "fvu" in text(browser, "main table")
    click(browser, see, "#new-report")
    see(lambda _: "/new/report" in browser.current_url)
    click(browser, see, "#submit")
    click(browser, see, "#report")  # once it is written
    see(lambda _: browser.current_url.endswith("/report/runs/from-the-page/report.html"))
    assert "from-the-page" in browser.title
    assert complaints(browser) == []


def test_two_runs_are_compared_and_the_pages_fit_a_phone(served, browser, see):
    second = served.client.submit("train", store="acts.zarr", latents=64, k=8, tokens="20k", out="runs/second", label="k = 8")
    assert served.client.wait(second["id"])["state"] == "done"
    browser.get(f"{served.url}/runs")
    for name in ("runs/from-the-page", "runs/second"):
        browser.find_element("css selector", f"input[value='{name}']").click()
    click(browser, see, "main button")
    see(lambda _: "/compare" in browser.current_url)
    assert len(browser.find_elements("css selector", ".curve svg")) == 3
    picture(browser, "service-compare.png")

    browser.set_window_size(PHONE, 800)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": PHONE, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    for path in (
        "/",
        "/runs",
        "/stores",
        "/new/train",
        "/new/harvest",
        f"/job/{second['id']}",
        "/run/runs/second",
        browser.current_url,
    ):
        browser.get(path if path.startswith("http") else served.url + path)
        wide = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], path
    browser.get(served.url)
    picture(browser, "service-phone.png")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1100, 900)
    assert complaints(browser) == []


def test_a_job_is_queued_and_stopped_by_keyboard_alone(served, browser, see):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def to(css: str) -> None:
        """By Tab alone."""
        for _ in range(120):
            if browser.execute_script("return document.activeElement.matches(arguments[0])", css):
                return
            ActionChains(browser).send_keys(Keys.TAB).perform()
        raise AssertionError(f"Tab does not lead to {css}")

    browser.get(f"{served.url}/stores")
    to("a[href^='/new/train?store=acts.zarr']")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    see(lambda _: "/new/train" in browser.current_url)
    assert browser.find_element("id", "f-store").get_attribute("value") == "acts.zarr"
    to("#f-tokens")
    ActionChains(browser).send_keys("100M").perform()
    to("#submit")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    see(lambda _: "/job/" in browser.current_url)
    job = int(browser.current_url.rpartition("/")[2])
    to(f"#stop-{job}")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    see(lambda _: text(browser, "main .state") == "stopped")
    assert complaints(browser) == []


def test_a_form_that_cannot_be_says_so_and_keeps_what_was_written(served, browser, see):
    browser.get(f"{served.url}/new/train")
    fill(browser, store="acts.zarr", k="four")
    click(browser, see, "#submit")
    assert "'four' is not a number" in see(lambda _: text(browser, "[role=alert]"))
    assert browser.find_element("id", "f-k").get_attribute("value") == "four"
    assert [c for c in complaints(browser) if "422" not in c] == []
