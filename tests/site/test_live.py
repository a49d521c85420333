"""The live figures: their engine against the package, and each figure as a reader meets it."""

import contextlib
import itertools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import paramax
import pytest
from browser import fresh, opened, script
from flowjax.bijections import Chain, Invert

import gauss_flows as gf
from gauss_flows.conditioners import mlp

from _stills import POLICY, SHARED, STATIC, bare_page, figures  # isort: skip (conftest puts book/ on the path)

FIGURES = figures()
LAYERS = {  # how the package and the engine make the same layer
    "affine": (gf.AffineCoupling, {}, []),
    "spline": (gf.RQSplineCoupling, {"n_bins": 5, "interval": 3.0}, [5, 3]),
    "mixture": (gf.MixtureGaussianCDFCoupling, {"n_components": 4}, [4]),
}
MASKS = [[True, False], [False, True], [True, False]]
ENGINE = script("engine")


def weights(layers):
    """The weights of affine, spline or mixture couplings, in the order of the engine."""
    nets = [network for layer in layers for network in layer.conditioner.layers]
    return np.concatenate([np.ravel(a) for network in nets for a in (network.weight, network.bias)]).tolist()


@pytest.fixture(scope="module", params=LAYERS)
def exported(request, quick_compilation):
    """What the package computes in double precision with a flow, and 200 steps of Adam."""
    make, arguments, options = LAYERS[request.param]
    with jax.enable_x64():
        rows = np.asarray(gf.targets.two_moons().sample(jr.key(0), (64,)))
        conditioner = mlp(12, 2, activation=jnp.tanh)
        keys = jr.split(jr.key(1), len(MASKS))
        layers = [
            make(key, (2,), mask=np.array(mask), conditioner=conditioner, **arguments)
            for key, mask in zip(keys, MASKS, strict=True)
        ]
        flow = gf.Transformed(gf.standard_normal(2), Invert(Chain(layers)))
        chain = flow.bijection.bijection
        is_fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)
        trained, rest = eqx.partition(flow, eqx.is_inexact_array, is_leaf=is_fixed)
        rate, adam = 1e-3, optax.adam(1e-3)

        def loss(trained):
            return -paramax.unwrap(eqx.combine(trained, rest)).log_prob(rows).mean()

        def step(carry, _):
            trained, state = carry
            value, gradient = jax.value_and_grad(loss)(trained)
            updates, state = adam.update(gradient, state)
            return (optax.apply_updates(trained, updates), state), value

        mapped = lambda function: eqx.filter_jit(lambda rows: jax.vmap(function)(rows))
        run = eqx.filter_jit(lambda trained: jax.lax.scan(step, (trained, adam.init(trained)), length=200)[1])
        value, gradient = eqx.filter_jit(jax.value_and_grad(loss))(trained)
        z, log_det = mapped(chain.transform_and_log_det)(rows)
        normals = np.random.default_rng(0).normal(size=(64, 2))
        given = {
            "bijector": request.param, "options": options, "masks": MASKS, "width": 12, "depth": 2,
            "parameters": weights(chain.bijections), "rows": rows.tolist(), "normals": normals.tolist(),
            "rate": rate, "steps": 200,
        }  # fmt: skip
        values = {
            "z": z, "log_det": log_det, "x": mapped(chain.inverse)(normals),
            "jacobian": mapped(jax.jacfwd(chain.transform))(rows[:8]),
            "loss": value, "gradient": weights(gradient.bijection.bijection.bijections),
            "losses": run(trained),
        }  # fmt: skip
        return given, {name: np.asarray(v) for name, v in values.items()}


def run_engine(window, given, plant=("", "", "")):
    """What the engine returns; ``plant`` names a file, a piece of its text, and what replaces it."""
    file, old, new = plant
    with contextlib.closing(window.new_page()) as page:
        for part in SHARED[:3]:
            text = (STATIC / "live" / f"{part}.js").read_text()
            if part == file:
                assert text.count(old) == 1, f"the fault must have one place, not {text.count(old)}"
                text = text.replace(old, new)
            page.add_script_tag(content=text)
        return {name: np.asarray(value) for name, value in page.evaluate(ENGINE, given).items()}


def differences(found, expected):
    """The largest difference of each quantity, relative to its size where that is above 1."""
    return {
        name: float(np.max(np.abs(found[name] - value) / np.maximum(1, np.abs(value))))
        for name, value in expected.items()
    }


def test_the_engine_equals_the_package(window, exported):
    given, expected = exported
    errors = differences(run_engine(window, given), expected)
    assert errors.pop("losses") <= 1e-6
    assert max(errors.values()) <= 1e-9, errors


PLANTED = {
    "affine": [
        ("bijectors", "byLogSlope / slope) * sigmoid", "byLogSlope) * sigmoid"),
        ("bijectors", "this.logSlope = Math.log(slope);", "this.logSlope = -Math.log(slope);"),
        ("network", "(a) => 1 - a * a }", "(a) => 1 + a * a }"),
        ("flow", "(by[i] += byInput[at])", "(by[i] -= byInput[at])"),
        ("flow", "square[i] += 0.001 *", "square[i] += 0.01 *"),
    ],
    "spline": [
        ("bijectors", "2 * Math.log(bin.s / below)", "Math.log(bin.s / below)"),
        ("bijectors", "share[j] * (byShare[j] - mean)", "share[j] * byShare[j]"),
        ("bijectors", "byBelow * (1 - 2 * b) + byTop * 2 * b", "byBelow * (1 - 2 * b)"),
        ("bijectors", "sigmoid(slopeInput(raw)) * (1 - bounded * bounded)", "sigmoid(slopeInput(raw))"),
        ("bijectors", "-bin.s * eta]", "bin.s * eta]"),
    ],
    "mixture": [
        ("bijectors", "byValue + byLogSlope * z;", "byValue - byLogSlope * z;"),
        ("bijectors", "byLogSlope * (part - weight)", "byLogSlope * part"),
        ("bijectors", "byX -= (byLogSlope * part", "byX += (byLogSlope * part"),
        ("bijectors", "return logF < logUpper ? -tail", "return logF < logUpper ? tail"),
    ],
}  # fmt: skip


def test_planted_errors_are_found(window, exported):
    given, expected = exported
    for plant in PLANTED[given["bijector"]]:
        errors = differences(run_engine(window, given, plant), expected)
        assert not (errors.pop("losses") <= 1e-6 and max(errors.values()) <= 1e-9), plant


def test_the_data_are_the_packages_targets(window):
    """The same curves and widths, so the same entropy, but for the scaling of each coordinate."""
    with contextlib.closing(window.new_page()) as page:
        for part in ("flow", "data"):
            page.add_script_tag(path=STATIC / "live" / f"{part}.js")
        found = page.evaluate(
            """() => ["moons", "bumps"].map((name) => {
                const { generator } = liveFlow({});
                const target = new (liveData().Mixture)(name);
                const [n, rows] = [20000, target.sample(20000, generator(3))];
                let entropy = 0;
                for (let i = 0; i < n; i++) entropy -= target.logProb(rows[2 * i], rows[2 * i + 1]) / n;
                return [entropy, target.scales[0], target.scales[1], target.marginalDivergence()];
            })"""
        )
    targets = (gf.targets.two_moons(0.1), gf.targets.gaussian_mixture([[-1.5, -0.75], [1.5, 0.75]], 0.4))
    for (entropy, *scales, divergence), target, width in zip(found, targets, (0.1, 0.4), strict=True):
        # -log p of one point has a standard deviation below 1.2 for both: 0.03 is 3.5 standard errors.
        assert entropy == pytest.approx(target.entropy + np.sum(np.log(np.array(scales) / width)), abs=0.03)
        assert divergence > 0.1


@pytest.mark.parametrize(
    ("layers", "bijector"),
    [
        pytest.param(layers, name, marks=pytest.mark.nightly if layers > 1 and name != "affine" else [])
        for layers in (1, 10)
        for name in LAYERS
    ],
)
def test_the_checks_hold_for_every_flow(window, bijector, layers):
    """Before training and after fast training, on every kind of data."""
    for data in ("moons", "spiral", "bumps", "drawn"):
        settings = {
            "data": data,
            "bijector": bijector,
            "pattern": "alternate",
            "layers": layers,
            "rate": 0.03,
        }
        settings["drawn"] = [[-2.9, 0], [2.9, 0], [0, 0], [0, 0.1], [0, 2.9]]
        for picture in train(window, settings, 60):
            assert picture["roundTrip"] <= 1e-8
            assert picture["logDet"] <= 1e-8
            (first, second), share = picture["integral"]["masses"], picture["integral"]["share"]
            bound = 0.02 + 3 * np.sqrt(share * (1 - share) / 1000)
            assert abs(first - second) > 0.01 or abs((first + second) / 2 - share) <= bound
            assert picture["divergence"] >= -3 * picture["error"]


@pytest.mark.nightly  # it trains for a while, and the engine that trains has its own tests
def test_training_shows_what_the_masks_do(window):
    settings = {"data": "moons", "bijector": "spline", "pattern": "alternate", "layers": 6, "rate": 0.01}
    alternate = train(window, settings, 1000)[1]
    fixed = train(window, settings | {"pattern": "fixed"}, 1000)[1]
    peek = train(window, settings | {"pattern": "peek", "bijector": "affine"}, 1000)[1]
    assert alternate["divergence"] <= 0.15
    assert fixed["divergence"] >= fixed["least"] >= 0.1
    assert fixed["divergence"] >= alternate["divergence"] + 0.05
    assert peek["divergence"] < -3 * peek["error"]
    assert min(peek["roundTrip"], peek["logDet"]) > 1e-2
    assert min(abs(mass - 1) for mass in peek["integral"]["masses"]) > 0.1


def train(window, settings, steps):
    with contextlib.closing(window.new_page()) as page:
        for part in SHARED[:5]:
            page.add_script_tag(path=STATIC / "live" / f"{part}.js")
        return page.evaluate(script("settings"), {"settings": settings, "steps": steps})


@contextlib.contextmanager
def alone(window, address, name, policy=POLICY, **options):
    """One figure on a bare page, with the site's scripts, under a strict policy; started by keyboard."""
    html = bare_page(name, address + "_static", options, policy.format(address))
    with fresh(window, address) as page:
        page.route(f"{address}alone.html", lambda route: route.fulfill(body=html, content_type="text/html"))
        page.goto(f"{address}alone.html")
        assert page.locator("figure :is(select, input, table)").count() == 0  # nothing before Start
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector(".live-stage")
        assert page.evaluate("document.activeElement.closest('.live-stage') !== null")
        yield page
        assert page.outside == []
        assert page.complaints == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_live_figure_survives_random_use(window, address, name):
    from axe_playwright_python.base import AXE_SCRIPT

    with alone(window, address, name) as page:
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, width
            small = page.evaluate(
                """() => [...document.querySelectorAll(".live-stage svg text")].filter((text) => {
                    const svg = text.closest("svg");
                    const size = parseFloat(getComputedStyle(text).fontSize);
                    return size * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width < 9;
                }).map((text) => text.textContent)"""
            )
            assert small == [], width
        for seed in (1, 2):
            assert page.evaluate(script("interact"), seed) == []
    with alone(window, address, name, policy="") as page:
        page.evaluate(AXE_SCRIPT)
        assert page.evaluate(script("axe"), [{"include": [["figure"]]}, {}]) == []


def checks(page):
    """The table of checks: claim, then measured, required, verdict."""
    rows = page.locator("table.checks tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def state(page):
    """Step, loss and entropy, from the sentence that the figure shows."""
    text = page.locator(".live-status").inner_text().replace("−", "-")
    found = re.match(r"Step (\d+): loss ([-\d.]+), entropy of the data ([-\d.]+)", text)
    return tuple(map(float, found.groups())) if found else (-1, 0, 0)


def until(page, holds):
    """Wait at most half a minute, without the page's ``eval``, which the policy forbids."""
    for _ in range(300):
        if holds(page):
            return
        page.wait_for_timeout(100)
    pytest.fail(page.locator(".live-stage").inner_text())


def test_a_flow_trains_in_the_page(window, address):
    with contextlib.closing(window.browser.new_context()) as moving, alone(moving, address, "train") as page:
        train, reached = page.get_by_role("button", name="Train"), lambda n: lambda page: state(page)[0] >= n
        train.press("Enter")
        until(page, reached(600))
        page.get_by_label("layers", exact=True).fill("4")  # while it trains: it starts anew, and goes on
        page.get_by_label("bijector", exact=True).select_option("spline")
        until(page, lambda page: 0 <= state(page)[0] < 300)
        until(page, reached(300))
        page.get_by_role("button", name="Pause").press("Enter")
        page.wait_for_timeout(1500)
        step, loss, entropy = state(page)
        assert entropy < loss < entropy + 0.8
        assert {verdict for *_, verdict in checks(page).values()} == {"ok"}
        page.wait_for_timeout(500)
        assert state(page)[0] == step
        page.get_by_label("masks", exact=True).select_option("peek")
        train.press("Enter")
        until(page, lambda page: 0 <= state(page)[0] < 600)
        until(page, reached(600))
        page.get_by_role("button", name="Pause").press("Enter")
        page.wait_for_timeout(1500)
        *verdicts, mass = (verdict for *_, verdict in checks(page).values())
        assert set(verdicts) == {"FAILED"}
        assert mass != "ok"


def test_a_flow_trains_where_workers_are_refused(window, address):
    policy = POLICY.replace("worker-src blob:", "worker-src 'none'")
    with contextlib.closing(window.browser.new_context()) as moving, fresh(moving, address) as page:
        html = bare_page("train", address + "_static", {}, policy.format(address))
        page.route(f"{address}alone.html", lambda route: route.fulfill(body=html, content_type="text/html"))
        page.goto(f"{address}alone.html")
        page.click(".live-start")
        page.get_by_role("button", name="Train").press("Enter")
        until(page, lambda page: state(page)[0] >= 100)


def test_a_drawing_by_keyboard_becomes_data(window, address):
    with alone(window, address, "train") as page:
        page.get_by_label("data", exact=True).select_option("drawn")
        page.get_by_role("button", name="Clear the drawing").press("Enter")
        assert "at least 5 points" in page.locator(".live-status").inner_text()
        page.locator("canvas").first.focus()
        for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowUp", "ArrowRight"):
            page.keyboard.press(key)
            page.keyboard.press("Space")
        until(page, lambda page: state(page)[0] == 0)


BROKEN = {  # which checks fail: round trip, log-determinant, integral
    "none": (True, True, True), "forgotten": (True, False, False), "sign": (True, False, False),
    "clipped": (False, False, False), "peek": (False, False, False), "swapped": (False, True, True),
}  # fmt: skip


def test_each_fault_turns_its_checks_red(window, address):
    with alone(window, address, "break") as page:
        for size, (fault, holds) in itertools.product(("0.5", "1", "1.5"), BROKEN.items()):
            page.get_by_label("weights, times their first values", exact=True).fill(size)
            page.get_by_label("fault", exact=True).select_option(fault)
            until(page, lambda page: "…" not in page.locator("tbody").inner_text())
            verdicts = tuple(verdict == "ok" for *_, verdict in checks(page).values())
            assert verdicts == holds, (fault, size)


# Of a figure: what is set, by label or by button, and then which checks hold, in their order.
SETTINGS = [
    ("cobweb", {"Slope g′(1)": "0.75"}, "11111"),
    ("cobweb", {"Slope g′(1)": "1.35"}, "0110"),
    ("cobweb", {"Slope g′(1)": "-1.35"}, "0011"),
    ("made", {"order": "4132", "step i": "4"}, "11111"),
    ("made", {"Fault: output degrees off by one": None}, "01110"),
    ("masks", {"masks": "alternating", "layers": "3"}, "111"),
    ("masks", {"Fault: networks take all inputs": None}, "000"),
    ("spline", {"Preset": "nearly flat", "Point x": "-0.01"}, "11111"),
    ("spline", {"Knot": "2", "slope of the knot": "1"}, "11111"),
]


@pytest.mark.parametrize(("name", "settings", "holds"), SETTINGS)
def test_the_checks_tell_right_settings_from_wrong_ones(window, address, name, settings, holds):
    with alone(window, address, name) as page:
        for label, value in settings.items():
            control = page.get_by_label(label, exact=True)
            if value is None:
                page.get_by_role("button", name=label, exact=True).click()
            elif control.evaluate("e => e.tagName") == "SELECT":
                options = control.locator("option").evaluate_all("all => all.map((o) => [o.value, o.text])")
                begins = (f"{value} ", f"{value},")
                (chosen,) = [v for v, text in options if value in (v, text) or text.startswith(begins)]
                control.select_option(chosen)
            else:
                control.fill(value)
        verdicts = [verdict for *_, verdict in checks(page).values() if verdict != "–"]
        assert "".join(str(int(verdict == "ok")) for verdict in verdicts) == holds, checks(page)


def pages_with(name):
    site = STATIC.parents[1] / "_build" / "html"
    return [
        p.relative_to(site).as_posix()
        for p in site.glob("book/*.html")
        if f'data-live="{name}"' in p.read_text()
    ]


@pytest.mark.parametrize("name", FIGURES)
def test_a_live_figure_is_a_picture_until_it_is_started(window, address, name):
    (page_name, *_) = pages_with(name)
    with opened(window, address, page_name) as page:
        figure = page.locator(f"[data-live={name}]")
        picture = figure.locator("img")
        assert picture.evaluate("i => i.naturalWidth") >= 1000
        assert len(picture.get_attribute("alt")) >= 40
        figure.get_by_role("button", name="Start").press("Enter")
        assert figure.locator(".live-stage").count() == 1
        assert page.complaints == []
        assert page.outside == []
    with contextlib.closing(window.browser.new_context(java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(address + page_name)
        assert page.locator(f"[data-live={name}] img").evaluate("i => i.naturalWidth") >= 1000
        assert page.locator(f"[data-live={name}] :is(button, select, input)").count() == 0


def test_what_is_sent_is_small():
    """The engine and the largest figure, in bytes; it was 37,000 when this was written."""
    sent = STATIC.parents[1] / "_build" / "html" / "_static" / "live"
    size = {path.stem: path.stat().st_size for path in sent.glob("*.js")}
    assert sum(size[part] for part in SHARED) + max(size[name] for name in FIGURES) <= 40_000


@pytest.mark.nightly
def test_memory_does_not_grow(window, address):
    """Two minutes of training; the first half minute is for warming up."""
    with contextlib.closing(window.browser.new_context()) as moving, alone(moving, address, "train") as page:
        client = moving.new_cdp_session(page)
        client.send("HeapProfiler.enable")

        def heap():
            client.send("HeapProfiler.collectGarbage")
            return page.evaluate("performance.memory.usedJSHeapSize")

        page.get_by_role("button", name="Train").press("Enter")
        page.wait_for_timeout(30_000)
        first = heap()
        page.wait_for_timeout(90_000)
        assert heap() <= first + 2_000_000
