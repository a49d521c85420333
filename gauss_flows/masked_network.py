"""What an autoregressive layer needs of a network: all parameters in one pass, and an inverse by steps."""

import abc

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Degrees = tuple[int, ...]


class MaskedNetwork(eqx.Module):
    """A network that respects degrees: an output depends only on the inputs of at most its degree.

    So one pass gives the parameters of all elements. And what the network computed from the elements of the
    first ranks stays as it is when further elements become known, so that an inverse computes it only once.
    """

    @abc.abstractmethod
    def __call__(self, inputs: Float[Array, " I"]) -> Float[Array, " O"]:
        """The outputs, P parameters for each element, from the elements and then the condition."""

    @abc.abstractmethod
    def incremental_inverse(
        self,
        bijector: PyTree,
        ranks: np.ndarray,
        y: Float[Array, " D"],
        condition: Float[Array, " C"] | None,
    ) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
        """Return the x with :math:`T(x) = y`, and minus the log of each slope there.

        Args:
            bijector: The scalar bijector whose parameters the network predicts, a
                :class:`~gauss_flows.Parametrized`.
            ranks: The rank of each element, whole numbers from 0 to the number of steps less one, shape (D,).
            y: What to invert, flat.
            condition: The external condition, where the layer has one.
        """


class MaskedFactory(abc.ABC):
    """A factory of networks that respect degrees, as :class:`~gauss_flows.MaskedAutoregressive` takes it."""

    @abc.abstractmethod
    def __call__(self, inputs: Degrees, outputs: Degrees, *, key: PRNGKeyArray) -> MaskedNetwork:
        """The network from the degrees of its inputs and outputs.

        Args:
            inputs: The rank of each element, in C order, and then -1 for each number of the condition.
            outputs: The degrees of P parameters for each element, one less than the element's rank.
            key: Random key.
        """


def expect_degrees(name: str, inputs: Degrees) -> None:
    """Refuse the number of inputs, which other layers give, where their degrees are needed."""
    degrees = isinstance(inputs, tuple)
    if not degrees:
        raise ValueError(
            f"`conditioner` must not be `{name}(...)`, whose masks only MaskedAutoregressive can use."
        )
