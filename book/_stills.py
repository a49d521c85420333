"""Take the still pictures of the live figures: ``python book/_stills.py [NAME ...]``, all of them by default.

A reader sees them until the figure is started, in print, and where there is no JavaScript. Each is the part
of the figure that needs no controls, after the settings below. It needs a browser, as the site's tests do.
"""

import io
import json
import os
import shutil
import sys
from html import escape
from pathlib import Path

from PIL import Image

STATIC = Path(__file__).parent / "_static"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SHARED = ("bijectors", "network", "flow", "data", "training", "page")
POLICY = "default-src 'none'; script-src {0}; worker-src blob:; style-src {0}; img-src {0} data:"

# What is done before the picture is taken, in the page.
PREPARATION = {
    "train": """async () => {
        const go = document.querySelector(".live-button");
        go.click();
        const status = document.querySelector(".live-status");
        const steps = () => Number(status.textContent.match(/Step (\\d+)/)?.[1]);
        while (!(steps() >= 3000)) await new Promise((done) => setTimeout(done, 100));
        go.click();
        await new Promise((done) => setTimeout(done, 2000));
    }""",
}


def figures() -> list[str]:
    """Return the names of all live figures."""
    return sorted(path.stem for path in (STATIC / "live").glob("*.js") if path.stem not in SHARED)


def bare_page(name: str, static: str, options: dict | None = None, policy: str = "") -> str:
    """Return a page with one live figure and nothing else; ``static`` is the address of the scripts."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    sheets = "".join(
        f'<link rel="stylesheet" href="{static}/{sheet}.css">' for sheet in ("gauss_flows", "live")
    )
    scripts = "".join(f'<script defer src="{static}/live/{part}.js"></script>' for part in (*SHARED, name))
    data = f'data-live="{name}" data-options="{escape(json.dumps(options or {}))}"'
    return (
        f'<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">{meta}'
        f'<meta name="viewport" content="width=device-width"><title>{name}</title>{sheets}{scripts}'
        f'</head><body><main><figure class="live" {data}><div class="live-card"><img alt="" src="data:,">'
        "</div><figcaption></figcaption></figure></main></body></html>"
    )


def browser_path() -> str | None:
    """Return the path of a browser, ``CHROMIUM`` or one that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def main(names: list[str]) -> None:
    from playwright.sync_api import sync_playwright

    page_file = STATIC / "live" / ".still.html"
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=browser_path(), args=flags)
        page = browser.new_page(viewport={"width": 796, "height": 900}, device_scale_factor=2)
        for name in names or figures():
            page_file.write_text(bare_page(name, STATIC.as_uri()), encoding="utf-8")
            page.goto(page_file.as_uri())
            page.add_style_tag(content="body { font-family: sans-serif; }")
            page.click(".live-start")
            page.evaluate(PREPARATION.get(name, "() => {}"))
            page.wait_for_timeout(500)
            shot = page.locator(".live-panels").first.screenshot(animations="disabled")
            Image.open(io.BytesIO(shot)).convert("RGB").save(
                STATIC / "live" / f"{name}.webp", quality=80, method=6
            )
            print(f"{name}.webp")
        browser.close()
    page_file.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
