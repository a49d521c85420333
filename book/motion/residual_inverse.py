"""The moving figure ``residual_inverse``.

cd book; python -m motion.residual_inverse
"""

import numpy as np

import gauss_flows as gf
from _style import ACTIVE, GAUSS_KW, TRUTH
from motion.drawing import marker, two_panels
from motion.movie import Movie


def residual_inverse():
    """Fixed-point iteration undoes a residual block on a whole grid at once."""
    L, b, steps = 0.9, 1.6, 20

    def g(
        x,
    ):  # its Jacobian has L cos(...) off the diagonal, zeros on it: norm L at most
        waves = np.sin(b * x[..., 1] + 0.6), np.sin(b * x[..., 0] - 0.4)
        return L / b * np.stack(waves, axis=-1)

    side, along = np.linspace(-2, 2, 13), np.linspace(-2, 2, 61)
    grid = np.stack(
        [np.stack([np.full(61, s), along], 1) for s in side]
        + [np.stack([along, np.full(61, s)], 1) for s in side]
    )
    z = grid + g(grid)
    guesses = [z]
    for _ in range(steps):
        guesses.append(z - g(guesses[-1]))
    guesses = np.stack(guesses)
    error = np.linalg.norm(guesses - grid, axis=-1).reshape(steps + 1, -1).max(axis=1)
    bound = L ** np.arange(steps + 1) * error[0]
    gf.check("error / bound, every step", (error / bound).max(), at_most=1 + 1e-9)

    fig, left, right = two_panels(
        "$x_{k+1} = z - g(x_k)$ straightens the grid", "Never above the bound",
        "steps k", "largest distance from the answer", lim=2.75,
    )  # fmt: skip
    left.plot(*grid.transpose(2, 1, 0), color="0.8", lw=0.8)
    right.semilogy(bound, **GAUSS_KW, label=f"the bound, {L}$^k$ × the first error")
    right.semilogy(
        error,
        "o-",
        color=ACTIVE,
        ms=3.5,
        lw=1.2,
        label="largest of the whole grid",
    )
    right.set(xticks=range(0, steps + 1, 5), ylim=(None, 3))
    right.legend(loc="upper right")
    captions = [
        "The start, x₀ = z: the grid after the block. Gray: the grid before it, which we want to find."
    ]
    captions += [
        f"After step {k}: no point is farther than {error[k]:.3f} from the solution;"
        f" the bound is {bound[k]:.3f}."
        for k in range(1, steps + 1)
    ]
    movie = Movie(fig, captions, still=0, seconds=0.7)
    movie.lines(left, guesses, ACTIVE, width=1.6)
    movie.points(right, marker(list(enumerate(error))), TRUTH, radius=5, alpha=1)
    return movie


if __name__ == "__main__":
    residual_inverse().write("residual_inverse")
