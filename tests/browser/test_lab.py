"""The ELBO lab in a browser without a network: every control works, and what is measured agrees with what is exact."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytestmark = pytest.mark.browser
WAIT = 120_000


@pytest.fixture(scope="module")
def address():
    """Where the lab is served."""
    if importlib.util.find_spec("marimo") is None:
        pytest.skip("no marimo here: pip install '.[lab]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from genailab_pyro.cli import main; main()"]
    options = ["lab", "--headless", "--port", str(port)]
    serving = subprocess.Popen(
        [*program, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + WAIT / 1000
        while not answers(url):
            assert serving.poll() is None, serving.communicate()[0]
            assert time.monotonic() < deadline, "the lab does not answer"
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        printed = serving.communicate(timeout=30)[0]
    assert "Traceback" not in printed, printed


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def page(address):
    """The lab, opened by a browser that reaches this machine alone, and notes what fails."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is an extra: pip install '.[browser]'")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1200, "height": 1400})
        context.route("**/*", lambda route: route.continue_() if address in route.request.url else route.abort())
        opened = context.new_page()
        opened.failed = []
        opened.on("requestfailed", lambda request: opened.failed.append(request.url))
        opened.on("response", lambda response: response.status >= 400 and opened.failed.append(response.url))
        opened.on("pageerror", lambda error: opened.failed.append(str(error)))
        opened.goto(address)
        opened.wait_for_selector("#exact-variance:visible", timeout=WAIT)
        yield opened
        browser.close()


@pytest.fixture(autouse=True)
def nothing_fails(page):
    """No request fails or leaves this machine, and no cell shows an error."""
    yield
    assert page.failed == []
    assert page.locator(".marimo-error:visible, marimo-traceback:visible, [data-testid=marimo-error]").count() == 0


def value(page, name):
    return float(page.locator(f"#{name}:visible").get_attribute("data-value"))


def settled(page, name, act):
    """Act, and wait until a figure of the page has another value."""
    before = page.locator(f"#{name}:visible").get_attribute("data-value")
    act()
    page.locator(f"#{name}:visible:not([data-value='{before}'])").wait_for(timeout=WAIT)
    page.wait_for_timeout(500)


def agrees(page):
    difference = abs(value(page, "measured-variance") - value(page, "exact-variance"))
    return difference < 5 * value(page, "standard-error") + 1e-9


def choose(page, label, option):
    page.locator("select:visible").nth(["What", "Estimator", "Particles"].index(label)).select_option(label=option)


def slide(page, label, key="ArrowRight"):
    slider = page.get_by_role("slider", name=label)
    slider.focus()
    slider.press(key)


def test_the_estimators_agree_with_what_is_exact(page):
    page.get_by_role("tab", name="Estimators").click()
    assert value(page, "exact-variance") == pytest.approx(4)
    assert agrees(page)
    settled(page, "exact-variance", lambda: choose(page, "Estimator", "score"))
    assert value(page, "exact-variance") == pytest.approx(30)
    assert agrees(page)
    settled(page, "exact-variance", lambda: choose(page, "Particles", "4"))
    assert value(page, "exact-variance") == pytest.approx(7.5)
    assert agrees(page)


def test_the_location_the_scale_the_seed_and_the_step_do_something(page):
    page.get_by_role("tab", name="Estimators").click()
    for label in ("Location", "Scale"):
        settled(page, "exact-variance", lambda label=label: slide(page, label))
        assert agrees(page)
    seed = page.get_by_label("Seed").first
    settled(page, "measured-variance", lambda: (seed.fill("3"), seed.press("Enter")))
    assert agrees(page)
    shown = page.locator("img:visible").nth(1)
    before = shown.get_attribute("src")
    slide(page, "Step size")
    page.wait_for_function("([e, s]) => e.src !== s", arg=[shown.element_handle(), before], timeout=WAIT)


def test_a_model_has_more_estimators_than_a_cost(page):
    page.get_by_role("tab", name="Estimators").click()
    few = page.locator("select:visible").nth(1).locator("option").count()
    settled(page, "exact-variance", lambda: choose(page, "What", "x = 2 ~ N(z, 1), z ~ N(0, 1)"))
    assert page.locator("select:visible").nth(1).locator("option").count() > few
    settled(page, "exact-variance", lambda: choose(page, "Estimator", "dreg"))
    assert agrees(page)


def test_beta_collapses_latents_and_a_fit_is_diagnosed(page):
    page.get_by_role("tab", name="Beta and collapse").click()
    before = value(page, "linear-active-units")
    settled(page, "linear-kl", lambda: slide(page, "beta", "End"))
    assert value(page, "linear-active-units") < before
    slide(page, "Warm-up share")
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Fit a small VAE").click()
    page.wait_for_selector("#diagnosis:visible", timeout=WAIT)
    assert "latents are active" in page.locator("#diagnosis:visible").inner_text()
    assert value(page, "fit-active-units") == 0


def test_the_counts_follow_their_sliders(page):
    page.get_by_role("tab", name="NB and ZINB").click()
    page.wait_for_selector("#NB-mean:visible", timeout=WAIT)
    assert value(page, "NB-mean") == pytest.approx(value(page, "observed-mean"), abs=0.03)
    settled(page, "NB-mean", lambda: slide(page, "Mean mu"))
    settled(page, "NB-variance", lambda: slide(page, "log10 theta"))
    settled(page, "ZINB-zeros", lambda: slide(page, "Gate of the ZINB"))
    assert value(page, "ZINB-zeros") > value(page, "NB-zeros")
