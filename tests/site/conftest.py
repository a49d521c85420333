"""The browser and the server of the site's tests, started once."""

import functools
import http.server
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book"))
from _stills import BROWSERS, browser_path  # noqa: E402


@pytest.fixture(scope="session")
def window():
    """A browser that finds no host but this one, and that keeps what it loaded for the next page."""
    if browser_path() is None:
        pytest.skip(f"no browser found: install one of {', '.join(BROWSERS)}, or set CHROMIUM")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path(), args=flags)
        yield chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        chromium.close()


@pytest.fixture(scope="session")
def address():
    """The address of the built site on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(ROOT / "_build" / "html"))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
