"""A moving figure: axes that matplotlib draws once, and artists that are stored frame by frame."""

import base64
import io
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex

OUT = Path(__file__).parents[1] / "_static" / "motion"
LIMIT = 1_500_000  # bytes of a figure, both files together
UNITS = 16  # of a stored coordinate, to the pixel


class Movie:
    """Axes that stay and artists that move.

    Args:
        fig: The figure, its axes drawn and styled; 100 of its dots are a pixel of the player.
        captions: What the reader is told, one a stop.
        stops: The frames at which the player's arrow keys stop; default every frame.
        still: The frame of the picture without a player.
        seconds: From stop to stop.
        smooth: Whether the frames between have a meaning, or at least do no harm.
    """

    def __init__(
        self,
        fig,
        captions,
        *,
        stops=None,
        still=-1,
        seconds=1.2,
        smooth=True,
    ):
        self.stops = list(range(len(captions)) if stops is None else stops)
        self.frames, self.artists = self.stops[-1] + 1, []
        if len(captions) != len(self.stops):
            raise ValueError(f"`captions` must be one a stop, {len(self.stops)}; got {len(captions)}")
        self.fig, self.captions, self.still = fig, captions, still
        self.seconds, self.smooth = seconds, smooth
        fig.set_dpi(100)
        fig.canvas.draw()
        fig.set_layout_engine("none")  # the axes stay where they are
        self.width, self.height = (int(s) for s in fig.get_size_inches() * 100)

    def points(self, ax, xy, colours, *, radius=1.8, alpha=0.75, shown=None):
        """Dots, xy of shape (frames, n, 2), each with a colour of its own or all with one."""
        names = [colours] * xy.shape[1] if isinstance(colours, str) else colours
        palette = list(dict.fromkeys(names))
        groups = np.array([palette.index(c) for c in names], np.uint8)
        draw = lambda xy: ax.scatter(
            *xy.T,
            c=names,
            s=(2 * radius * 0.72) ** 2,
            lw=0,
            alpha=alpha,
            zorder=3,
        )
        self._add(
            ax, "points", xy, draw, shown, alpha, colours=palette,
            radius=radius, groups=_text(groups),
        )  # fmt: skip

    def lines(self, ax, xy, colour, *, width=1.6, alpha=1.0, shown=None):
        """Lines, xy of shape (frames, lines, points of each, 2)."""
        draw = lambda xy: ax.plot(
            *xy.transpose(2, 1, 0),
            color=colour,
            lw=width * 0.72,
            alpha=alpha,
            zorder=3,
        )
        self._add(
            ax, "lines", xy, draw, shown, alpha, colour=colour, width=width,
            count=xy.shape[1], length=xy.shape[2],
        )  # fmt: skip

    def areas(self, ax, xy, colours, *, alpha=1.0, shown=None):
        """Filled outlines, xy of shape (frames, outlines, points of each, 2)."""
        colours = [to_hex(c) for c in colours]
        draw = lambda xy: [
            ax.fill(*one.T, fc=colours[i % len(colours)], alpha=alpha, lw=0) for i, one in enumerate(xy)
        ]
        self._add(
            ax, "areas", xy, draw, shown, alpha, colours=colours,
            count=xy.shape[1], length=xy.shape[2],
        )  # fmt: skip

    def cells(self, ax, which, colours, *, gap=0.4):
        """Squares that fill the axes, ``which`` colour each has, (frames, rows, columns); "" is none.

        Between them is a ``gap``, in pixels; a negative one hides the seams of a smooth picture.
        """
        rgba = np.array([mpl.colors.to_rgba(c or "none") for c in colours])
        rows, columns = which.shape[1:]
        draw = lambda i: ax.pcolormesh(
            np.linspace(*ax.get_xlim(), columns + 1),
            np.linspace(*ax.get_ylim(), rows + 1),
            rgba[which[i, ::-1]],
            edgecolor="white" if gap > 0 else "face",
            lw=0.3,
        )
        self.artists.append(
            {
                "kind": "cells", "box": self._box(ax), "clip": self._box(ax),
                "alpha": 1, "rows": rows, "columns": columns, "gap": gap,
                "colours": colours, "data": _text(which.astype(np.uint8)),
                "draw": draw,
            }
        )  # fmt: skip

    def _box(self, ax):
        x0, y0, x1, y1 = ax.get_window_extent().extents.tolist()
        return [round(v, 2) for v in (x0, self.height - y1, x1 - x0, y1 - y0)]

    def _add(self, ax, kind, xy, draw, shown, alpha, **how):
        xy = np.asarray(xy, float)
        if len(xy) != self.frames or not np.isfinite(xy).all():
            raise ValueError(f"`xy` must be finite and have {self.frames} frames; got {len(xy)}")
        pixels = ax.transData.transform(xy.reshape(-1, 2))
        pixels[:, 1] = self.height - pixels[:, 1]
        whole = np.clip(np.round(pixels * UNITS), -32768, 32767)
        self.artists.append(
            {
                "kind": kind, "clip": self._box(ax), "alpha": alpha, **how,
                "data": _text(whole.astype("<i2")),
                "draw": lambda i: (shown is None or shown[i]) and draw(xy[i]),
            }
        )  # fmt: skip
        if shown is not None:
            self.artists[-1]["shown"] = [int(s) for s in shown]

    def write(self, name):
        """Write both files, of at most 1.5 MB together, and print their size."""
        draws = [artist.pop("draw") for artist in self.artists]
        data = {
            "width": self.width, "height": self.height, "units": UNITS,
            "frames": self.frames, "stops": self.stops, "captions": self.captions,
            "seconds": self.seconds, "smooth": self.smooth,
            "background": "data:image/webp;base64,"
            + base64.b64encode(self._picture(lossless=True)).decode(),
            "artists": self.artists,
        }  # fmt: skip
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        OUT.mkdir(exist_ok=True)
        (OUT / f"{name}.js").write_text(
            f'(window.motionFigures ??= {{}})["{name}"] = {text};\n',
            encoding="utf-8",
        )
        for draw in draws:
            draw(range(self.frames)[self.still])
        (OUT / f"{name}.webp").write_bytes(self._picture(quality=88))
        plt.close(self.fig)
        size = sum((OUT / f"{name}{s}").stat().st_size for s in (".js", ".webp"))
        print(f"{name}: {size:,} bytes")
        if size > LIMIT:
            raise ValueError(f"{name} takes more than {LIMIT:,} bytes")

    def _picture(self, **how):
        file = io.BytesIO()
        self.fig.savefig(file, format="webp", dpi=200, pil_kwargs={"method": 6, **how})
        return file.getvalue()


def _text(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
