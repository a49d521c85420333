"""A pytest plugin: nbval compares each stored figure with the freshly drawn one, where it compares the text.

Both are averaged over blocks of 8 by 8 pixels, so that differences of anti-aliasing cancel. A block counts as
changed if any colour's mean moved by more than a sixteenth of its range; 0.1 % of a figure's blocks may have
changed (another word in a title changes more). Where a cell is tagged ``measured-figure``, because it draws
what differs between machines (trained flows, samples of them, times), 25 % may. Sizes may differ by 2 %,
since labels set the margins.

Another release of Matplotlib sets letters a pixel further, all over a figure. So pixels are compared under
the locked one alone, and only the number of figures under others.
"""

import base64
import io
import re
from importlib.metadata import version
from pathlib import Path

import matplotlib.image
import numpy as np

BLOCK, LEVEL = 8, 1 / 16
ALLOWED, MEASURED = 0.001, 0.25
CHANGED = Path("_build/figures")
LOCK = Path(__file__).parents[1] / "requirements.lock"
LOCKED = re.findall(r"^matplotlib==(\S+)", LOCK.read_text(), re.MULTILINE) == [version("matplotlib")]


def blocks(png: bytes) -> np.ndarray:
    """Mean colours of the blocks of a picture on white, shape (rows, columns, 3)."""
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")
    if pixels.shape[2] == 4:
        pixels = 1 - pixels[..., 3:] * (1 - pixels[..., :3])
    rows, columns = (-(-n // BLOCK) for n in pixels.shape[:2])
    whole = np.ones((rows * BLOCK, columns * BLOCK, 3))
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels[..., :3]
    return whole.reshape(rows, BLOCK, columns, BLOCK, 3).mean(axis=(1, 3))


def difference(stored: bytes, drawn: bytes) -> float:
    """The share of blocks that changed; 1 if the sizes differ by more than 2 %."""
    a, b = blocks(stored), blocks(drawn)
    sizes = np.array([a.shape[:2], b.shape[:2]])
    if (np.ptp(sizes, axis=0) > np.maximum(1, 0.02 * sizes.max(axis=0))).any():
        return 1.0
    rows, columns = sizes.min(axis=0)
    a, b = a[:rows, :columns], b[:rows, :columns]
    return float((np.abs(a - b).max(axis=2) > LEVEL).mean())


def pictures(outputs) -> list[bytes]:
    """The figures among a cell's outputs."""
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [base64.b64decode(png) for png in found if png]


def compared(cell, drawn, stored) -> str | None:
    """What is wrong with a cell's figures, or None."""
    pairs = pictures(stored), pictures(drawn)
    if len(pairs[0]) != len(pairs[1]):
        return f"{len(pairs[0])} figures are stored, {len(pairs[1])} were drawn"
    if not LOCKED:
        return None
    allowed = MEASURED if "measured-figure" in cell.cell.metadata.get("tags", []) else ALLOWED
    for number, (old, new) in enumerate(zip(*pairs, strict=True)):
        share = difference(old, new)
        if share > allowed:
            CHANGED.mkdir(parents=True, exist_ok=True)
            name = f"{Path(str(cell.parent.path)).stem}_{cell.cell_num}_{number}"
            (CHANGED / f"{name}_stored.png").write_bytes(old)
            (CHANGED / f"{name}_drawn.png").write_bytes(new)
            where = f"see {CHANGED}/{name}_*.png"
            return (
                f"the stored figure is stale: {share:.2%} of its blocks changed, {allowed:.1%} may; {where}"
            )
    return None


def pytest_configure(config):
    """Put the figures' comparison behind that of the text."""
    from nbval.plugin import IPyNbCell

    compare_text = IPyNbCell.compare_outputs
    if getattr(compare_text, "with_figures", False):
        return

    def compare(self, test, ref, skip_compare=None):
        if not compare_text(self, test, ref, skip_compare):
            return False
        wrong = compared(self, test, ref)
        if wrong:
            self.comparison_traceback.append(wrong)
        return not wrong

    compare.with_figures = True
    IPyNbCell.compare_outputs = compare
