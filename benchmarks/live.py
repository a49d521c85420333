"""The live figures in a browser: training steps per second, the longest task, and the time to load a page.

    make book && python benchmarks/live.py

Training: six affine layers with 32 hidden units and batches of 128, as the figure starts, against the same
flow and optimizer in JAX on this machine. Tasks: what keeps the page from answering while a figure trains, in
a worker and, where workers are refused, between the page's other tasks; then while each figure is used.
Loading: the page until its `load` event, with the live scripts and without them, the medians of 15 in turn.
"""

import statistics
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flowjax.bijections import Chain, Invert
from playwright.sync_api import sync_playwright

import gauss_flows as gf

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "book"), str(ROOT / "tests" / "site")]
from _stills import STATIC, bare_page, browser_path, figures  # noqa: E402

OBSERVE = """() => {
    window.longest = 0;
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
    }).observe({ type: "longtask" });
}"""
WITHOUT_WORKERS = "delete window.Worker;"
INTERACT = (ROOT / "tests" / "site" / "interact.js").read_text()


def steps_in_jax():
    """Steps per second of the same training, compiled, batches included."""
    conditioner = gf.conditioners.mlp(32, 1, activation=jnp.tanh)
    masks = [np.array([True, False]), np.array([False, True])] * 3
    layers = [
        gf.AffineCoupling(key, (2,), mask=mask, conditioner=conditioner)
        for key, mask in zip(jr.split(jr.key(0), 6), masks, strict=True)
    ]
    flow = gf.Transformed(gf.standard_normal(2), Invert(Chain(layers)))
    x = gf.targets.two_moons().sample(jr.key(1), (10_000,))
    options = {"batch_size": 128, "optimizer": optax.adam(1e-2), "val_fraction": 0.1, "progress": False}
    times = []
    for steps in (500, 2500, 500, 2500):
        start = time.perf_counter()
        jax.block_until_ready(
            eqx.filter(gf.fit(jr.key(2), flow, x, steps=steps, **options).flow, eqx.is_array)
        )
        times.append(time.perf_counter() - start)
    return 2000 / (times[3] - times[2])


def start(browser, name, before=""):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    if before:
        page.add_init_script(before)
    file = STATIC / "live" / ".benchmark.html"
    file.write_text(bare_page(name, STATIC.as_uri()))
    page.goto(file.as_uri())
    file.unlink()
    page.evaluate(OBSERVE)
    page.click(".live-start")
    return page


def training(browser, before=""):
    """Steps per second and the longest task of the page, over ten seconds."""
    page = start(browser, "train", before)
    steps = lambda: int(page.locator(".live-status").inner_text().split(":")[0].split()[1])
    page.wait_for_function("document.querySelector('.live-status').textContent.startsWith('Step')")
    page.evaluate("window.longest = 0")
    page.get_by_role("button", name="Train").click()
    page.wait_for_timeout(1000)
    first, begin = steps(), time.perf_counter()
    page.wait_for_timeout(10_000)
    rate = (steps() - first) / (time.perf_counter() - begin)
    longest = page.evaluate("window.longest")
    page.close()
    return rate, longest


def use(browser, name):
    page = start(browser, name)
    page.wait_for_timeout(500)
    page.evaluate("window.longest = 0")
    page.evaluate(INTERACT, 1)
    longest = page.evaluate("window.longest")
    page.close()
    return longest


def loading(browser, rounds=15):
    times = {True: [], False: []}
    for _ in range(rounds):
        for live in times:
            page = browser.new_page()
            if not live:
                page.route("**/live/*.js", lambda route: route.abort())
            page.goto((ROOT / "_build/html/book/coupling_pattern.html").as_uri(), wait_until="load")
            times[live].append(
                page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart")
            )
            page.close()
    return [statistics.median(times[live]) for live in (True, False)]


def main():
    in_jax = steps_in_jax()
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=browser_path(), args=flags)
        for name, before in (("in a worker", ""), ("without workers", WITHOUT_WORKERS)):
            rate, longest = training(browser, before)
            print(f"training {name:16} {rate:6.0f} steps per second, {rate / in_jax:.2f} of JAX; ", end="")
            print(f"longest task {longest:.0f} ms (0: below 50)")
        for name in figures():
            print(f"using {name:19} longest task {use(browser, name):.0f} ms (0: below 50)")
        with_live, without = loading(browser)
        print(f"loading a page: {with_live:.0f} ms with the live scripts, {without:.0f} ms without")
        browser.close()


if __name__ == "__main__":
    main()
