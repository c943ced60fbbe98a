"""The site in a browser without a network: every page opens, with its mathematics, figures and search."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.browser
SITE = Path(os.environ.get("GENAILAB_SITE", "site")).resolve()


@pytest.fixture(scope="module")
def site():
    """The address of a built site, served from this machine."""
    if not (SITE / "index.html").exists():
        end = pytest.fail if "GENAILAB_SITE" in os.environ else pytest.skip
        end(f"no site in {SITE}: build it by 'python tutorials/site/build.py', or name it in GENAILAB_SITE")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is an extra: pip install '.[browser]'")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, site):
    """A page that reaches this machine alone, and notes what fails."""
    context = browser.new_context()
    context.route("**/*", lambda route: route.continue_() if site in route.request.url else route.abort())
    opened = context.new_page()
    opened.failed = []
    opened.on("requestfailed", lambda request: opened.failed.append(request.url))
    opened.on("response", lambda response: response.status >= 400 and opened.failed.append(response.url))
    opened.on("pageerror", lambda error: opened.failed.append(str(error)))
    yield opened
    context.close()


def addresses():
    """The pages of the site, apart from search and index."""
    found = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
    return [name for name in found if not name.startswith(("_", "search", "genindex", "py-modindex"))]


@pytest.mark.parametrize("name", addresses() or ["index.html"])
def test_a_page_opens_whole(page, site, name):
    page.goto(f"{site}/{name}", wait_until="load")
    if page.locator(".math").count():
        page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.evaluate("MathJax.startup.promise")
        assert page.locator("mjx-container").count() >= page.locator(".math").count()
        assert page.locator("mjx-merror").count() == 0
    text = page.inner_text("article, main, body")
    assert page.locator(".output.traceback, .output.stderr, .cell_output .highlight-pytb").count() == 0
    assert not [token for token in (r"\mathrm", r"\frac", r"\begin{", "$$") if token in text]
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
    assert broken == []
    assert page.failed == []


def test_no_link_within_the_site_is_dead(page, site):
    dead = set()
    for name in addresses():
        page.goto(f"{site}/{name}", wait_until="domcontentloaded")
        for link in page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)"):
            parts = urlsplit(link)
            target = SITE / unquote(parts.path).lstrip("/")
            if link.startswith(site) and not (target.is_file() or (target / "index.html").is_file()):
                dead.add(f"{name}: {link}")
    assert dead == set()


def test_the_search_finds_a_page(page, site):
    page.goto(f"{site}/search.html?q=StandardNormal", wait_until="load")
    page.wait_for_selector("#search-results li a")
    assert "reference" in page.locator("#search-results li a").first.get_attribute("href")
    assert page.failed == []
