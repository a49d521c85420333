"""Linear maps between the other layers, which mix the coordinates."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import lu, solve_triangular
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from paramax import Parameterize
from paramax.utils import inv_softplus

from gauss_flows.bijection import Bijection
from gauss_flows.compiling import jit_once
from gauss_flows.validate import Given, Shape, expect_key, expect_shape, expect_whole


class HouseholderRotation(Bijection):
    r"""An orthogonal map, the product of reflections: volume is preserved, log-determinant 0.

    .. math:: z = Q_n \cdots Q_1 x, \qquad Q_i = I - 2\, w_i w_i^\top / \|w_i\|^2.

    An even number of reflections is a rotation. D reflections reach every orthogonal matrix; two turn
    one plane. ``params`` holds the vectors :math:`w_i`, shape (n, D); only their directions matter. They
    start in equal pairs, so an even number starts as the identity; for a random start replace them
    by normal numbers, or give a key.

    Args:
        n_reflections: n, at least 1.
        shape: The event's shape, (D,).
        key: Random normal vectors, if given.

    Raises:
        ValueError: If ``n_reflections`` is below 1 or the event is not a vector.

    Source:
        Tomczak and Welling, "Improving variational auto-encoders using Householder flow" (2016).

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> turn = gf.HouseholderRotation(2, (3,))
        >>> turn.transform(jnp.arange(3.0)).shape
        (3,)
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    params: Float[Array, "n D"]

    def __init__(self, n_reflections: int, shape: Shape, *, key: PRNGKeyArray | None = None):
        n = expect_whole("n_reflections", n_reflections, 1)
        self.shape, self.cond_shape = _vector(shape), None
        if key is None:
            size = self.shape[0]
            pairs = (jnp.arange(n)[:, None] // 2).astype(float)
            self.params = jnp.cos(jnp.pi * pairs * (jnp.arange(float(size))[None, :] + 0.5) / size) + 0.0
        else:
            self.params = jax.random.normal(expect_key(key), (n, *self.shape))

    def with_axes(self, axes: Float[Array, "D D"]) -> "HouseholderRotation":
        """The rotation whose i-th output is the projection on the i-th axis, each up to its sign.

        Args:
            axes: Orthonormal rows, as many as there are reflections.

        Raises:
            ValueError: If there are not D reflections.
        """
        n, size = self.params.shape
        if n != size:
            raise ValueError(f"`n_reflections` must be {size}, the event's size, to take any axes; got {n}.")
        unit = jnp.eye(size, dtype=axes.dtype)
        rest, vectors = axes.T, []
        for i in range(size):  # the stable sign: the vector's length is never below sqrt(2)
            sign = jnp.where(rest[i, i] > 0, -1, 1)
            v = rest[:, i] - sign * unit[i]
            rest = rest - jnp.outer(2 * v / (v @ v), v @ rest)
            vectors.append(v)
        return eqx.tree_at(lambda b: b.params, self, jnp.stack(vectors))

    def transform_and_log_det(self, x, condition=None):
        return _reflect(self.params, x), jnp.zeros((), x.dtype)

    def inverse_and_log_det(self, y, condition=None):
        return _reflect(self.params[::-1], y), jnp.zeros((), y.dtype)


def _reflect(vectors, x):
    """H_n … H_1 x. The matrix comes first: under vmap it is made once, and a batch costs one product."""
    transposed = jnp.eye(len(x), dtype=vectors.dtype)
    for i in range(len(vectors)):
        v = vectors[i]
        transposed -= jnp.outer(transposed @ v, 2 * v / (v @ v))
    return x @ transposed


class LULinear(Bijection):
    r"""A general linear map in its LU form, :math:`z = L U x + b`; it starts as the identity.

    L is lower triangular with unit diagonal, U upper triangular with positive diagonal (a softplus),
    so :math:`\log|\det| = \sum_i \log U_{ii}`, and the inverse is two triangular solves.

    Args:
        shape: The event's shape, (D,).

    Raises:
        ValueError: If the event is not a vector.

    Source:
        Kingma and Dhariwal, "Glow" (NeurIPS 2018), section 3.2.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp
        >>> float(gf.LULinear((3,)).transform(jnp.arange(3.0))[2])
        2.0
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    lower: Float[Array, "D D"]
    upper: Float[Array, "D D"]
    diagonal: PyTree  # Float[Array, " D"], wrapped: positive whenever a method runs
    bias: Float[Array, " D"]

    def __init__(self, shape: Shape):
        self.shape, self.cond_shape = _vector(shape), None
        size = self.shape[0]
        self.lower, self.upper = jnp.zeros((size, size)), jnp.zeros((size, size))
        self.diagonal = Parameterize(jax.nn.softplus, inv_softplus(jnp.ones(size)))
        self.bias = jnp.zeros(size)

    def _factors(self):
        unit = jnp.eye(len(self.bias), dtype=self.bias.dtype)
        return jnp.tril(self.lower, -1) + unit, jnp.triu(self.upper, 1) + unit * self.diagonal[None, :]

    def transform_and_log_det(self, x, condition=None):
        lower, upper = self._factors()
        return lower @ (upper @ x) + self.bias, jnp.log(self.diagonal).sum()

    def inverse_and_log_det(self, y, condition=None):
        # The factors' inverses come first: under vmap they are made once, and a batch costs two products. (A
        # solve with a batch of right-hand sides was seen to wait milliseconds for the threads of BLAS.)
        lower, upper = self._factors()
        unit = jnp.eye(len(self.bias), dtype=self.bias.dtype)
        x = solve_triangular(lower, unit, lower=True, unit_diagonal=True) @ (y - self.bias)
        return solve_triangular(upper, unit) @ x, -jnp.log(self.diagonal).sum()


class Conv1x1(Bijection):
    r"""A convolution over 1×1 pixels: the same linear map of the channels at every pixel, in its LU form.

    .. math:: z_{hw} = W x_{hw}, \qquad W = P L U, \qquad
              \log|\det J| = H W \sum_i \log |U_{ii}|.

    W starts as a random orthogonal matrix. The permutation P and the signs of U's diagonal stay as they are
    drawn. Trained are L below its diagonal of ones, U above its diagonal, and :math:`\log |U_{ii}|`.

    Args:
        key: Random key.
        shape: The event's shape, of at least two axes, such as (H, W, C); the last one holds the channels.

    Raises:
        ValueError: If ``key`` is no random key, or the shape has fewer than two axes.

    Source:
        Kingma and Dhariwal, "Glow" (NeurIPS 2018), section 3.2.

    Example:
        >>> import gauss_flows as gf, jax.numpy as jnp, jax.random as jr
        >>> layer = gf.Conv1x1(jr.key(0), (4, 4, 3))
        >>> z, log_det = layer.transform_and_log_det(jnp.ones((4, 4, 3)))
    """

    shape: Shape = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True)
    permutation: Int[Array, " C"]  # row i of W is that row of L U
    signs: Int[Array, " C"]
    lower: Float[Array, "C C"]
    upper: Float[Array, "C C"]
    log_diagonal: Float[Array, " C"]

    def __init__(self, key: PRNGKeyArray, shape: Shape):
        expect_key(key)
        self.shape, self.cond_shape = expect_shape(shape), None
        if len(self.shape) < 2:
            raise ValueError(f"`shape` must have at least two axes, the last for channels; got {self.shape}.")
        self.permutation, self.signs, self.lower, self.upper, self.log_diagonal = _random_factors(
            key, self.shape[-1]
        )

    @property
    def matrix(self) -> Float[Array, "C C"]:
        """The matrix W."""
        lower, upper = self._factors()
        return (lower @ upper)[self.permutation]

    def _factors(self):
        unit = jnp.eye(len(self.permutation), dtype=self.lower.dtype)
        diagonal = self.signs.astype(self.log_diagonal.dtype) * jnp.exp(self.log_diagonal)
        return jnp.tril(self.lower, -1) + unit, jnp.triu(self.upper, 1) + unit * diagonal[None, :]

    def _each_pixel(self, matrix, event):
        return (event.reshape(-1, len(matrix)) @ matrix.T).reshape(self.shape)

    def _log_det(self):
        return math.prod(self.shape[:-1]) * self.log_diagonal.sum()

    def transform_and_log_det(self, x, condition=None):
        return self._each_pixel(self.matrix, x), self._log_det()

    def inverse_and_log_det(self, y, condition=None):
        lower, upper = self._factors()  # as in LULinear, the inverse matrix comes first
        unit = jnp.eye(len(self.permutation), dtype=lower.dtype)
        inverse = solve_triangular(upper, solve_triangular(lower, unit, lower=True, unit_diagonal=True))
        return self._each_pixel(inverse[:, self.permutation], y), -self._log_det()


@jit_once
def _random_factors(key, size):
    """The factors of a random orthogonal matrix: P as an order, the signs and logarithms of U's diagonal."""
    turn, triangle = jnp.linalg.qr(jax.random.normal(key, (size, size)))
    turn = turn * jnp.where(jnp.diagonal(triangle) < 0, -1, 1)[None, :]  # uniform over all of them
    permutation, lower, upper = lu(turn)
    diagonal = jnp.diagonal(upper)
    signs = 1 - 2 * (diagonal < 0).astype(int)
    return (
        permutation.argmax(axis=1),
        signs,
        jnp.tril(lower, -1),
        jnp.triu(upper, 1),
        jnp.log(jnp.abs(diagonal)),
    )


def _vector(shape: Given) -> tuple[int, ...]:
    shape = expect_shape(shape)
    if len(shape) != 1:
        raise ValueError(f"`shape` must be that of a vector, (D,); got {shape}.")
    return shape
