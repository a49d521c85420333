"""Pages in the browser, as the site's tests open them."""

import contextlib
from pathlib import Path


@contextlib.contextmanager
def opened(window, address, name, scheme="light"):
    """A page with its formulas set; every request to another host and every complaint is noted."""
    with fresh(window, address) as page:
        page.emulate_media(color_scheme=scheme)
        page.goto(address + name, wait_until="load")
        page.wait_for_function("!document.querySelector('.math') || window.MathJax?.startup?.promise")
        page.evaluate("window.MathJax?.startup?.promise")
        yield page


@contextlib.contextmanager
def fresh(window, address):
    """An empty page that notes requests to other addresses, and complaints."""
    page = window.new_page()
    page.outside, page.complaints = [], []
    inside = (address, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(inside) else page.outside.append(r.url))
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda r: page.complaints.append(f"failed: {r.url}"))
    page.on("response", lambda r: page.complaints.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    try:
        yield page
    finally:
        page.close()


def script(name):
    """A function in JavaScript, from the file beside this one."""
    return (Path(__file__).parent / f"{name}.js").read_text()
