"""The built site, as a reader meets it: in a browser, without a network, in light and dark."""

import contextlib
import functools
import http.server
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

SITE = Path(__file__).parents[1] / "_build" / "html"
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.glob("book/*.html"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Page(HTMLParser):
    """Links, anchors, images and visible text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors, self.images, self.sources = [], set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag == "img":
            self.images.append(attrs)
        loads = tag in ("script", "img", "iframe") or (
            tag == "link" and {"stylesheet", "preload", "modulepreload", "icon"} & set(attrs["rel"].split())
        )
        if loads:
            self.sources += [attrs[name] for name in ("src", "href") if attrs.get(name)]


def test_the_site_is_built_and_whole():
    assert (SITE / "index.html").is_file(), "run `make book` first"
    assert "book/coupling_pattern.html" in PAGES


@pytest.mark.parametrize("name", PAGES)
def test_links_inside_the_site_resolve(name):
    page = Page(SITE / name)
    broken = []
    for link in page.links:
        target, anchor = urldefrag(link)
        if urlparse(target).scheme in ("http", "https", "mailto"):
            continue
        path = (SITE / name).parent / unquote(target) if target else SITE / name
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file() or (anchor and path.suffix == ".html" and not has(path, anchor)):
            broken.append(link)
    assert broken == []


@functools.cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(Page(path).anchors)


def has(path: Path, anchor: str) -> bool:
    return unquote(anchor) in anchors(path.resolve())


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_from_elsewhere(name):
    elsewhere = [s for s in Page(SITE / name).sources if urlparse(s).netloc]
    assert elsewhere == []


@pytest.mark.parametrize("name", PAGES)
def test_figures_have_alt_text(name):
    figures = [i for i in Page(SITE / name).images if "_images" in i.get("src", "")]
    assert all(len(i.get("alt", "")) >= 40 for i in figures), figures
    if name == "book/coupling_pattern.html":
        assert len(figures) >= 4


# --- in the browser -----------------------------------------------------------------------------


def browser_path() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def browser():
    if browser_path() is None:
        pytest.skip(f"no browser found: install one of {', '.join(BROWSERS)}, or set CHROMIUM")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path(), args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def opened(browser, address, name, scheme):
    """A page with every request to another host refused and noted, and every complaint kept."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.outside, page.complaints = [], []

    def route(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            page.outside.append(route.request.url)
            route.abort()

    page.route("**/*", route)
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda r: page.complaints.append(f"failed: {r.url}"))
    page.on("response", lambda r: page.complaints.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.goto(address + name, wait_until="load")
    page.wait_for_function("!document.querySelector('.math') || window.MathJax?.startup?.promise")
    page.evaluate("window.MathJax?.startup?.promise")
    try:
        yield page
    finally:
        context.close()


# The contrast of text with what is behind it, by WCAG's formula: the worst on the page.
CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length == 3 || c[3] > 0.5) return c; } return [255, 255, 255]; };
  let worst = [99, ''];
  for (const e of document.querySelectorAll(
      'main p, main li, main td, main th, main h1, main h2, main h3, main mjx-container, main pre')) {
    if (!e.innerText?.trim() && e.tagName != 'MJX-CONTAINER') continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.tagName + ': ' + (e.innerText || '').slice(0, 60)];
  }
  return worst; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_in_the_browser(browser, address, name, scheme):
    with opened(browser, address, name, scheme) as page:
        assert page.outside == []
        assert page.complaints == []
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        formulas = page.locator("span.math, div.math").count()
        assert page.locator("mjx-container").count() >= formulas
        assert page.locator("mjx-merror, .MathJax_Error").count() == 0
        assert not re.search(r"\\\(|\\\[|\$\$", page.locator("main").inner_text())
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
        assert page.locator("input[type=search]:visible, .search-button-field:visible").count() <= 1
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == []


def test_the_chapter_has_its_formulas_and_folds_its_solutions(browser, address):
    with opened(browser, address, "book/coupling_pattern.html", "light") as page:
        assert page.locator("mjx-container").count() > 50
        solution = page.get_by_text("nothing needs to be exponentiated for it")
        assert solution.count() == 1
        assert not solution.is_visible()
        page.locator("details, .toggle-button, .solution button").first.wait_for(state="attached")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.evaluate("document.querySelectorAll('.toggle-hidden button').forEach(b => b.click())")
        assert solution.is_visible()


def test_the_search_finds_a_public_name(browser, address):
    with opened(browser, address, "search.html?q=check_bijection", "light") as page:
        page.wait_for_selector("#search-results li", timeout=15_000)
        assert "api.html" in page.locator("#search-results").inner_html()
