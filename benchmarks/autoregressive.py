"""The slow direction of an autoregressive layer against its quick one, in one run.

    make bench BENCHMARKS=benchmarks/autoregressive.py    (pip install zuko normflows, for those two)

One layer, two hidden layers, float32, on the CPU. Prints the time of the inverse over that of the pass in
the quick direction, both with their log-determinants, of the same layer: ours by its three inverses,
flowjax's, Zuko's (its inverse has no log-determinant) and normflows'. "Trained" takes 300 steps on correlated
normal points first.
"""

import importlib.util
import platform
from functools import partial

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import jax.random as jr
from flowjax.distributions import Normal, Transformed
from paramax import non_trainable

import gauss_flows as gf
from experiments.timing import seconds

CASES = ((64, 128, 1024), (256, 512, 256))


def pair(layer, x):
    """The two directions, compiled, ready to run."""
    arrays, rest = eqx.partition(layer, eqx.is_array)
    run = lambda method: jax.jit(
        jax.vmap(lambda a, v: getattr(eqx.combine(a, rest), method)(v), in_axes=(None, 0))
    )
    forward, inverse = run("transform_and_log_det"), run("inverse_and_log_det")
    z = forward(arrays, x)[0]
    error = jnp.abs(inverse(arrays, z)[0] - x).max()
    return partial(forward, arrays, x), partial(inverse, arrays, z), float(error)


def trained(layer, x):
    flow = Transformed(non_trainable(Normal(jnp.zeros(x.shape[1]))), fb.Invert(layer))
    options = {"steps": 300, "batch_size": 128, "learning_rate": 3e-3, "progress": False}
    return gf.fit(jr.key(4), flow, x, **options).flow.bijection.bijection


def torch_pair(name, x, width):
    import torch

    x = torch.tensor(jax.device_get(x))
    dim = x.shape[1]
    if name == "zuko":
        import zuko

        layer = zuko.flows.MaskedAutoregressiveTransform(dim, hidden_features=(width, width))()
        forward = lambda: layer.call_and_ladj(x)
        z = forward()[0].detach()
        inverse = lambda: layer.inv(z)
    else:
        import normflows as nf

        layer = nf.flows.MaskedAffineAutoregressive(dim, width, num_blocks=1)
        forward = lambda: layer.forward(x)
        z = forward()[0].detach()
        inverse = lambda: layer.inverse(z)
    quiet = lambda f: lambda: (torch.no_grad()(f)(), None)[1]
    return quiet(forward), quiet(inverse)


def main():
    print(f"jax {jax.__version__}, {platform.machine()}, {jax.local_device_count()} CPU device")
    print("dim, width, batch  layer                      pass (ms)  inverse / pass  error")
    for dim, width, batch in CASES:
        keys = jr.split(jr.key(0), 3)
        mix = jr.normal(keys[0], (dim, dim)) / jnp.sqrt(dim) + jnp.eye(dim)
        x = jr.normal(keys[1], (4096, dim)) @ mix
        x = x / x.std(axis=0)

        def show(name, forward, inverse, error=None, *, where=f"{dim:>4}, {width}, {batch:<6}"):
            quick, slow = seconds([forward, inverse])
            shown = "" if error is None else f"{error:.0e}"
            print(f"{where}  {name:<26} {1e3 * quick:>8.2f} {slow / quick:>14.1f}  {shown}", flush=True)

        def make(bijector, inverse=None, x=x, width=width):
            return gf.MaskedAutoregressive(
                jr.key(1), shape=x.shape[1:], bijector=bijector, nn_width=width, inverse=inverse
            )

        for name, bijector in (("affine", gf.Affine()), ("spline", gf.RQSpline())):
            show(f"ours, {name}", *pair(make(bijector), x[:batch]))
            layer = trained(make(bijector), x)
            show(f"ours, {name}, trained", *pair(layer, x[:batch]))
            for method in ("jacobi", "sequential") if name == "affine" else ():
                other = jax.tree.structure(make(bijector, method))
                other = jax.tree.unflatten(other, jax.tree.leaves(layer))  # the same weights
                show(f"ours, {name}, trained, {method}", *pair(other, x[:batch]))
        rival = fb.MaskedAutoregressive(
            jr.key(1), transformer=fb.Affine(), dim=dim, nn_width=width, nn_depth=2
        )
        show("flowjax, affine", *pair(rival, x[:batch]))
        for name in ("zuko", "normflows"):
            if importlib.util.find_spec(name) is not None:
                show(f"{name}, affine", *torch_pair(name, x[:batch], width))
            else:
                print(f"{name}: not installed")


if __name__ == "__main__":
    main()
