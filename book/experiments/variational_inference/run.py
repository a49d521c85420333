"""Run the long experiments of the chapter "Variational inference".

    python -m experiments.variational_inference.run            all, about half an hour on two idle cores
    python -m experiments.variational_inference.run schools    (or: modes, gradient, neutra)

Each experiment writes a table beside this file. Its first line names the versions, the machine and the date.
"""

import sys
import time

import equinox as eqx
import flowjax.distributions as fd
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy.stats
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import gauss_flows as gf
from experiments.common import write_table
from gauss_flows.bijection import partition

SEEDS, DRAWS = 5, 100_000
FOLDER = "variational_inference"

# Eight schools: the effect of coaching on test scores, and its standard error (Rubin, 1981).
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(z):
    """Return the log-joint density of eight schools at z = (mean / 5, t, eight effects).

    The spread of the effects is tau = 5 tan(pi Phi(t) / 2), half-Cauchy for a standard normal t.
    """
    mean, t, effects = 5 * z[0], z[1], z[2:]
    tan = jnp.tan(jnp.pi / 2 * jax.scipy.special.ndtr(-jnp.abs(t)))  # of the nearer end, which keeps digits
    tau = 5 * jnp.where(t < 0, tan, 1 / tan)
    log_p = norm.logpdf(z[0]) + norm.logpdf(t) + norm.logpdf(effects, mean, tau).sum()
    return log_p + norm.logpdf(jnp.asarray(EFFECTS, z.dtype), effects, jnp.asarray(ERRORS, z.dtype)).sum()


def schools_truth():
    """Return log-evidence, means and standard deviations by quadrature over z[0] and z[1].

    Given these two, effects are independent normals, so that nothing else is left to integrate.
    """
    first, t = np.meshgrid(np.linspace(-8, 10, 1801), np.linspace(-6, 6, 1201), indexing="ij")
    mean, tau = 5 * first, 5 * np.tan(np.pi / 2 * scipy.stats.norm.cdf(t))
    log_p = scipy.stats.norm.logpdf(first) + scipy.stats.norm.logpdf(t)
    for effect, error in zip(EFFECTS, ERRORS, strict=True):
        log_p += scipy.stats.norm.logpdf(effect, mean, np.hypot(tau, error))
    weight = np.exp(log_p - log_p.max())
    log_z = np.log(weight.sum() * (first[1, 0] - first[0, 0]) * (t[0, 1] - t[0, 0])) + log_p.max()
    weight /= weight.sum()
    moments = [((weight * v).sum(), (weight * v**2).sum()) for v in (first, t)]
    for effect, error in zip(EFFECTS, ERRORS, strict=True):
        variance = 1 / (1 / tau**2 + 1 / error**2)
        center = variance * (mean / tau**2 + effect / error**2)
        moments.append(((weight * center).sum(), (weight * (variance + center**2)).sum()))
    means, squares = np.array(moments).T
    return float(log_z), means, np.sqrt(squares - means**2)


def crescent(z):
    """Return the log-joint density of a and b, standard normal, with an observed a + b² = 1 ± 0.3."""
    return norm.logpdf(z).sum() + norm.logpdf(1.0, z[0] + z[1] ** 2, 0.3)


def crescent_log_evidence():
    """Return the log-evidence of the crescent by quadrature over b; a is integrated in closed form."""
    b = np.linspace(-9, 9, 20_001)
    return float(
        np.log(np.trapezoid(scipy.stats.norm.pdf(b) * scipy.stats.norm.pdf(1, b**2, np.hypot(1, 0.3)), b))
    )


def two_modes(z):
    """Return the log-density of two standard normals at (-4, 0) and (4, 0), with weights 1/4 and 3/4."""
    return jnp.logaddexp(*(
        jnp.log(w) + norm.logpdf(z[0], m) + norm.logpdf(z[1]) for w, m in ((0.25, -4.0), (0.75, 4.0))
    ))  # fmt: skip


def families():
    """Return what makes each family for eight schools, and the options of its training."""
    path = {"gradient": "path", "learning_rate": 5e-3}
    return {
        "mean field": (lambda key: mean_field(10), {"steps": 2000, "learning_rate": 5e-2}),
        "coupling": (lambda key: gf.coupling_flow(key, 10, bijector=gf.Affine()), path | {"steps": 6000}),
        "IAF": (lambda key: gf.iaf(key, 10, bijector=gf.Affine()), path | {"steps": 6000, "batch_size": 512}),
    }


def mean_field(dim):
    """Return independent normals with trained means and scales."""
    return fd.Normal(jnp.zeros(dim), jnp.ones(dim))


def judged(flow, key, truth, draws=DRAWS):
    """Return how far a flow is from eight schools, with and without weights, in standard deviations."""
    log_z, mean, std = truth
    sample = gf.importance_sample(key, flow, schools, draws)
    found, _ = sample.mean()
    spread = np.sqrt(sample.mean(jnp.square)[0] - found**2)
    raw = np.asarray(sample.x, float)
    value, error = sample.log_evidence
    row = {
        "elbo": f"{sample.elbo.value:.5f}",
        "elbo_error": f"{sample.elbo.standard_error:.5f}",
        "k": f"{sample.pareto_k:.3f}",
        "share": f"{sample.effective_sample_size / draws:.4f}",
        "log_evidence": f"{value:.5f}",
        "evidence_error": f"{error:.5f}",
    }
    for name, m, s in (("plain", raw.mean(0), raw.std(0)), ("weighted", found, spread)):
        row[f"mean_{name}"] = f"{np.abs((m - mean) / std).max():.4f}"
        row[f"std_{name}"] = f"{np.abs(s / std - 1).max():.4f}"
    return row | {"log_z": f"{log_z:.5f}"}


def sweep_schools():
    """Fit three families to eight schools, and judge them against quadrature."""
    truth, rows = schools_truth(), []
    for name, (make, options) in families().items():
        for seed in range(SEEDS):
            keys = jr.split(jr.key(seed), 3)
            start = time.perf_counter()
            flow = gf.fit_density(keys[1], make(keys[0]), schools, progress=False, **options).flow
            took = time.perf_counter() - start
            row = {"family": name, "seed": seed, "seconds": f"{took:.1f}"} | judged(flow, keys[2], truth)
            rows.append(row)
            print(row, flush=True)
    write_table(f"{FOLDER}/schools.csv", list(rows[0]), [list(row.values()) for row in rows])


def one_mode_start(key):
    """Return a flow whose draws begin at the larger mode alone."""
    base = gf.Transformed(gf.standard_normal(2), gf.Affine(jnp.array([4.0, 0.0]), jnp.ones(2)))
    return gf.coupling_flow(key, 2, layers=4, base=base)


MODES = {"steps": 1000, "learning_rate": 5e-3, "progress": False}
ANNEALINGS = (1.0, 0.1, 0.01)


def sweep_modes():
    """Fit the two modes with and without annealing."""
    rows = []
    for annealing in ANNEALINGS:
        for seed in range(SEEDS):
            keys = jr.split(jr.key(seed), 4)
            result = gf.fit_density(keys[1], one_mode_start(keys[0]), two_modes, annealing=annealing, **MODES)
            sample = gf.importance_sample(keys[2], result.flow, two_modes, 20_000)
            exact = draw_modes(keys[3])
            row = {
                "annealing": annealing,
                "seed": seed,
                "elbo": f"{sample.elbo.value:.4f}",
                "k": f"{sample.pareto_k:.2f}",
                "left": f"{float((sample.x[:, 0] < 0).mean()):.4f}",
                "share": f"{sample.effective_sample_size / 20_000:.3f}",
                "cross_entropy": f"{float(-result.flow.log_prob(exact).mean()):.3f}",
            }
            rows.append(row)
            print(row, flush=True)
    write_table(f"{FOLDER}/modes.csv", list(rows[0]), [list(row.values()) for row in rows])


def draw_modes(key, n=20_000):
    """Return draws of the two modes."""
    which, noise = jr.split(key)
    left = jr.uniform(which, (n,)) < 0.25
    return jr.normal(noise, (n, 2)) + jnp.where(
        left[:, None], jnp.array([[-4.0, 0.0]]), jnp.array([[4.0, 0.0]])
    )


def gradient_variance(flow, log_density, key, repeats=400, batch=256):
    """Return the summed variance of a step's gradient by both estimates, "total" and "path"."""
    params, static = partition(flow)
    found = {}
    for name in ("total", "path"):

        def loss(params, key, name=name):
            flow = eqx.combine(params, static)
            x, log_q = flow.sample_and_log_prob(key, (batch,))
            if name == "path":
                log_q = eqx.combine(jax.lax.stop_gradient(params), static).log_prob(x)
            return (log_q - jax.vmap(log_density)(x)).mean()

        one = jax.jit(lambda key, loss=loss: ravel_pytree(jax.grad(loss)(params, key))[0])
        gradients = np.stack([np.asarray(one(k)) for k in jr.split(key, repeats)])
        found[name] = float(gradients.var(axis=0, ddof=1).sum())
    return found


def sweep_gradient():
    """Measure the variance of both gradients along one training run on eight schools."""
    rows = []
    for seed in range(SEEDS):
        keys = jr.split(jr.key(seed), 3)
        start = gf.coupling_flow(keys[0], 10, bijector=gf.Affine())
        for steps in (300, 1000, 4000):
            options = {"steps": steps, "gradient": "path", "learning_rate": 5e-3, "progress": False}
            flow = gf.fit_density(keys[1], start, schools, **options).flow
            found = gradient_variance(flow, schools, keys[2])
            rows.append((seed, steps, f"{found['total']:.5g}", f"{found['path']:.5g}"))
            print(rows[-1], flush=True)
    write_table(f"{FOLDER}/gradient.csv", ("seed", "steps", "total", "path"), rows)


def nuts(key, potential, start, draws=1000, warmup=1000, chains=4):
    """Return draws (chains, n, D) of NumPyro's NUTS and how many gradients they took."""
    from numpyro.infer import MCMC, NUTS

    options = {"num_chains": chains, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(NUTS(potential_fn=potential), num_warmup=warmup, num_samples=draws, **options)
    mcmc.run(key, init_params=start, extra_fields=("num_steps", "diverging"))
    extra = mcmc.get_extra_fields()
    return mcmc.get_samples(group_by_chain=True), int(extra["num_steps"].sum()), int(extra["diverging"].sum())


def sweep_neutra():
    """Run NUTS on eight schools, in its own coordinates and in the latent ones of a coupling flow."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    _, mean, std = schools_truth()
    rows = []
    for seed in range(SEEDS):
        keys = jr.split(jr.key(seed), 5)
        make, options = families()["coupling"]
        options = options | {"steps": 2000, "learning_rate": 1e-2}  # a third of the time is enough
        flow = gf.fit_density(keys[1], make(keys[0]), schools, progress=False, **options).flow
        to_data = flow.bijection.transform_and_log_det

        def latent(z, to_data=to_data):
            x, log_det = to_data(z)
            return -schools(x) - log_det

        starts = jr.normal(keys[2], (4, 10))
        runs = {
            "plain": (lambda z: -schools(z), jax.vmap(flow.bijection.transform)(starts), lambda z: z),
            "latent": (latent, starts, jax.jit(jax.vmap(jax.vmap(flow.bijection.transform)))),
        }
        for name, (potential, start, back) in runs.items():
            z, gradients, diverged = nuts(keys[3], potential, start)
            x = np.asarray(back(z), float)
            effective = np.array([effective_sample_size(x[..., i]) for i in range(10)])
            reduction = max(float(split_gelman_rubin(x[..., i])) for i in range(10))
            flat = x.reshape(-1, 10)
            row = {
                "coordinates": name,
                "seed": seed,
                "effective": f"{effective.min():.0f}",
                "gradients": gradients,
                "per_1000": f"{1000 * effective.min() / gradients:.3f}",
                "divergences": diverged,
                "r_hat": f"{reduction:.3f}",
                "mean_error": f"{np.abs((flat.mean(0) - mean) / std).max():.3f}",
                "std_error": f"{np.abs(flat.std(0) / std - 1).max():.3f}",
            }
            rows.append(row)
            print(row, flush=True)
    write_table(f"{FOLDER}/neutra.csv", list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["schools", "modes", "gradient", "neutra"]
    for name in chosen:
        {
            "schools": sweep_schools,
            "modes": sweep_modes,
            "gradient": sweep_gradient,
            "neutra": sweep_neutra,
        }[name]()
