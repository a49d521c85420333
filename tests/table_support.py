"""A table as people have them: twelve columns, each with a peculiarity."""

import numpy as np
import pandas as pd


def mixed(n=600, seed=0):
    """Two outliers in the price, exact zeros and ones, a count, an angle, a constant, missing values, …"""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 8))
    price = np.exp(4 + 0.5 * z[:, 0])
    price[[10, 20]] = 1e6
    share = 1 / (1 + np.exp(-z[:, 1] - 0.5 * z[:, 0]))
    share[rng.random(n) < 0.05], share[rng.random(n) < 0.03] = 0, 1
    height = 5 + z[:, 3]
    columns = {
        "price": price,
        "share": share,
        "visits": rng.poisson(np.exp(1 + 0.4 * z[:, 0])),
        "wind": np.degrees(rng.vonmises(0.2, 2.0, n) + 0.5 * z[:, 2]) % 360,
        "site": np.full(n, 5),
        "height": height,
        "length": 2 * height + 1e-3 * rng.normal(size=n),
        "seen_unix": 1.7e9 + np.cumsum(rng.exponential(60.0, n)),
        **{f"x{i}": z[:, 4 + i] for i in range(4)},
    }
    table = pd.DataFrame(columns)
    gaps = np.setdiff1d(rng.choice(n, n // 50, replace=False), [10, 20])
    table.loc[gaps, "x0"] = np.nan
    return table
