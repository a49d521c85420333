"""The built site, as a reader meets it: in a browser, without a network, in light and dark."""

import contextlib
import csv
import functools
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import numpy as np
import pytest
from browser import opened, script

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.glob("book/*.html"))
MADE = ["genindex.html", "search.html"]  # by Sphinx, from no source
TIMES = ROOT / "book" / "running_times.csv"
CHAPTERS = [Path(p).stem for p in PAGES if (ROOT / p).with_suffix(".ipynb").is_file()]


class Page(HTMLParser):
    """Links, anchors, images and headings of a page, and what it loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors, self.images, self.sources = [], set(), [], []
        self.names, self.headings = [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
            if attrs.get("class") == "name":  # in code, to the API reference
                self.names.append(attrs["href"])
        if tag == "article":  # what comes before is for print
            self.headings = []
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
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


@pytest.mark.parametrize("name", PAGES)
def test_headings_are_in_order(name):
    headings = Page(SITE / name).headings
    assert headings.count(1) == 1
    assert headings[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(headings)), headings


@pytest.mark.parametrize("name", CHAPTERS)
def test_names_in_code_lead_to_their_entry(name):
    """That each of them resolves is checked with all other links."""
    names = Page(SITE / f"book/{name}.html").names
    assert len(names) >= 5
    assert all(re.match(r"api\.html#(module-)?gauss_flows\b", link) for link in names)


def test_the_running_times_are_of_chapters():
    rows = csv.DictReader(TIMES.read_text().splitlines())
    times = {row["chapter"]: float(row["seconds"]) for row in rows}
    assert set(times) == {f"{{doc}}`{name}`" for name in CHAPTERS}
    assert all(seconds > 0 for seconds in times.values())


# What dichromats see: Machado, Oliveira, Fernandes (2009), severity 1, for linear RGB.
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour: str, seen_by: list[list[float]]) -> np.ndarray:
    """CIELAB (D65) of a colour, as a person with that vision sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(seen_by) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = to_xyz @ linear / (to_xyz @ np.ones(3))
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_survive_colour_blindness(blindness):
    """Any two of the palette, white included, differ by 12 in CIELAB; 2.3 is just seen side by side."""
    import _style

    names = ("PASSIVE", "ACTIVE", "GOOD", "BAD", "OTHER", "TRUTH", "MUTED")
    seen = {n: lab(getattr(_style, n), BLINDNESS[blindness]) for n in names}
    seen["white"] = lab("#ffffff", BLINDNESS[blindness])
    near = {
        (a, b): distance
        for a, b in itertools.combinations(seen, 2)
        if (distance := float(np.linalg.norm(seen[a] - seen[b]))) < 12
    }
    assert near == {}


# --- in the browser -----------------------------------------------------------------------------


def switch(page, scheme):
    """What the reader's system asks for changes while the page is open."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function("scheme => document.documentElement.dataset.theme == scheme", arg=scheme)


CONTRAST = script("contrast")
CUT_FORMULAS = script("cut_formulas")
THIN = script("thin")
AXE = script("axe")
STRUCTURE = [None, {"rules": {"color-contrast": {"enabled": False}}}]
COLOURS = [{"include": [["[data-kind]"]]}, {"runOnly": ["color-contrast", "link-in-text-block"]}]


@pytest.mark.parametrize("name", [*MADE, *PAGES])
def test_a_page_in_the_browser(window, address, name):
    """Opened once: half of the pages in the light scheme and then switched to the dark, half in reverse."""
    schemes = ["light", "dark"] if len(name) % 2 else ["dark", "light"]
    with opened(window, address, name, schemes[0]) as page:
        assert page.evaluate("document.documentElement.dataset.theme") == schemes[0]
        formulas = page.locator("span.math, div.math").count()
        assert page.locator("mjx-container").count() >= formulas
        assert page.locator("mjx-merror, .MathJax_Error").count() == 0
        assert not re.search(r"\\\(|\\\[|\$\$", page.locator("main").inner_text())
        fields = page.locator("input[type=search]:visible, .search-button-field:visible").count()
        assert fields <= (2 if name == "search.html" else 1)
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == []
        for width in (400, 1280):  # a phone, a desk
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, width
        assert page.evaluate(CUT_FORMULAS) == []
        for scheme in schemes:
            switch(page, scheme)
            ratio, where = page.evaluate(CONTRAST)
            assert ratio >= 4.5, (scheme, where)
        assert page.outside == []
        assert page.complaints == []


KINDS_OF_PAGE = ("book/intro.html", "book/api.html", "book/coupling_pattern.html", "search.html")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in KINDS_OF_PAGE else pytest.mark.nightly)
        for name in [*MADE, *PAGES]
    ],
)
def test_axe_finds_nothing_serious(window, address, name):
    """One page of each kind in `make test`, all pages in `make nightly`; in light and in dark."""
    from axe_playwright_python.base import AXE_SCRIPT

    with opened(window, address, name) as page:
        assert page.evaluate(THIN) > 20
        page.evaluate(AXE_SCRIPT)
        assert page.evaluate(AXE, STRUCTURE) == []
        for scheme in ("light", "dark"):
            switch(page, scheme)
            assert page.evaluate(AXE, COLOURS) == [], scheme


def test_a_chapter_by_keyboard(window, address):
    """The way past the menu, a solution that opens, a mark on what has the focus."""
    marked = script("marked")
    with opened(window, address, "book/coupling_pattern.html") as page:
        assert page.locator("mjx-container").count() > 50
        page.keyboard.press("Tab")
        skip = page.get_by_text("Skip to main content")
        assert skip.evaluate("e => e == document.activeElement")
        page.wait_for_function("document.activeElement.getBoundingClientRect().top >= 0")
        page.keyboard.press("Enter")
        assert page.url.endswith("#main-content")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main') != null")
        assert page.evaluate(marked)
        solution = page.get_by_text("no exponential is needed to compute it")
        assert solution.count() == 1
        assert not solution.is_visible()
        fold = page.locator(".solution", has=solution).locator("button.toggle-button")
        fold.focus()
        assert fold.evaluate("e => e.tabIndex") == 0
        assert page.evaluate(marked)
        page.keyboard.press("Enter")
        assert solution.is_visible()
        assert page.locator("details:not(:has(> summary))").count() == 0  # those open by themselves


@pytest.mark.parametrize(("word", "found"), [("check_bijection", "api"), ("negentropy", "glossary")])
def test_the_search_finds(window, address, word, found):
    with opened(window, address, f"search.html?q={word}") as page:
        page.wait_for_selector(f"#search-results li a[href*='{found}.html']", timeout=15_000)
        assert page.outside == []


# --- moving figures ---------------------------------------------------------------------------

MOTION = ROOT / "book" / "_static" / "motion"
MOVIES = sorted(p.stem for p in MOTION.glob("*.js"))


def page_of(movie):
    """The page that shows a moving figure; the introduction shows one that a chapter shows too."""
    found = [name for name in PAGES if f'data-motion="{movie}"' in (SITE / name).read_text()]
    found = [name for name in found if name != "book/intro.html"]
    assert len(found) == 1, f"{movie} is on {len(found)} pages"
    return found[0]


@pytest.mark.parametrize("movie", MOVIES)
def test_a_moving_figure_is_small_and_described(movie):
    assert sum((MOTION / f"{movie}{suffix}").stat().st_size for suffix in (".js", ".webp")) <= 1_500_000
    pictures = [i for i in Page(SITE / page_of(movie)).images if f"motion/{movie}.webp" in i.get("src", "")]
    assert [len(i["alt"]) >= 40 for i in pictures] == [True]


@pytest.mark.parametrize("by", ["file", pytest.param("http", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "movie", MOVIES[:1] + [pytest.param(m, marks=pytest.mark.nightly) for m in MOVIES[1:]]
)
def test_a_moving_figure_moves_when_asked(window, address, movie, by):
    site = SITE.as_uri() + "/" if by == "file" else address
    with opened(window, site, page_of(movie)) as page:
        figure = page.locator(f"[data-motion={movie}]")
        slider, caption, canvas = (figure.locator(s) for s in ("input", ".motion-step", "canvas"))
        page.wait_for_function("document.querySelector('[data-motion] canvas').width > 300")
        state = lambda: (slider.input_value(), caption.inner_text(), canvas.evaluate("c => c.toDataURL()"))
        page.wait_for_timeout(500)
        first = state()
        assert first[0] == "0"  # nothing plays by itself
        assert caption.get_attribute("aria-live") == "polite"
        slider.focus()
        page.keyboard.press("ArrowRight")
        second = state()
        assert second[0] == "1"
        assert not set(first) & set(second)
        page.keyboard.press("ArrowLeft")
        assert state() == first
        figure.get_by_role("button", name="Play").focus()
        page.keyboard.press("Space")
        page.wait_for_function("document.querySelector('[data-motion] input').value > 0")
        figure.get_by_role("button", name="Pause").press("Space")
        assert figure.get_by_role("button", name="Play").count() == 1
        assert page.outside == []
        # From a file the theme's icon fonts are refused, on every page.
        fonts = lambda c: by == "file" and ("webfonts" in c or "ERR_FAILED" in c)
        assert [c for c in page.complaints if not fonts(c)] == []


def test_a_moving_figure_stands_still_without_javascript(window):
    with contextlib.closing(window.browser.new_context(java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto((SITE / page_of(MOVIES[0])).as_uri())
        assert page.locator("[data-motion] img").evaluate("i => i.naturalWidth") > 1000
        assert page.locator("[data-motion] :is(input, button)").count() == 0
