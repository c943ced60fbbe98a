"""The negative binomial in 120 digits, and the frozen table of it that the tests compare against.

`python tests/distributions/oracle.py` writes the table, `oracle.csv`, again. Arguments are numbers of single
precision, so that the same row is exact as input in single and in double precision.
"""

import csv
from pathlib import Path

import mpmath
import numpy as np

TABLE = Path(__file__).with_name("oracle.csv")
ARGUMENTS = ("counts", "log_mean", "log_inverse_dispersion", "gate_logits")
RESULTS = ("log_prob", "by_log_mean", "by_log_inverse_dispersion", "zero_inflated", "by_gate_logits")


def evaluate(counts, log_mean, log_inverse_dispersion, gate_logits):
    """The five results of one row, as mpmath numbers, straight from the definition."""
    with mpmath.workdps(120):
        x, log_mu, log_theta, gate = map(mpmath.mpf, (counts, log_mean, log_inverse_dispersion, gate_logits))
        mu, theta = mpmath.exp(log_mu), mpmath.exp(log_theta)
        log_prob = (
            mpmath.loggamma(x + theta)
            - mpmath.loggamma(theta)
            - mpmath.loggamma(x + 1)
            + x * (log_mu - mpmath.log(mu + theta))
            + theta * (log_theta - mpmath.log(mu + theta))
        )
        by_mean = theta * (x - mu) / (mu + theta)
        digammas = mpmath.digamma(x + theta) - mpmath.digamma(theta)
        by_theta = theta * (digammas + log_theta - mpmath.log(mu + theta) + (mu - x) / (mu + theta))
        pi = 1 / (1 + mpmath.exp(-gate))
        closed = 1 / (1 + mpmath.exp(gate))
        if x == 0:
            total = pi + closed * mpmath.exp(log_prob)
            zero_inflated = mpmath.log(total)
            by_gate = pi * closed * (1 - mpmath.exp(log_prob)) / total
        else:
            zero_inflated, by_gate = mpmath.log(closed) + log_prob, -pi
        return log_prob, by_mean, by_theta, zero_inflated, by_gate


def arguments():
    """Rows of arguments: every trap, a grid of the corners, and draws over the whole range."""
    rng = np.random.default_rng(20240)
    rows = [(5, 5.0, theta, -3.0) for theta in (1e4, 1e5, 1e6, 1e7, 1e8)]
    rows += [(0, 1e4, 1e-4, 20.0), (3, 1e4, 1e-4, -20.0), (0, 1e-3, 2.0, -3.0), (1, 1e-3, 2.0, -3.0)]
    rows += [
        (counts, mean, theta, gate)
        for counts in (0, 1, 1000, 100_000)
        for mean in (1e-6, 1.0, 1e5)
        for theta in (1e-4, 1e-3, 1.0, 30.0, 1e6, 1e8)
        for gate in (-200.0, 200.0)
    ]
    for _ in range(300):
        mean, theta = 10 ** rng.uniform(-6, 5), 10 ** rng.uniform(-4, 8)
        scattered = rng.poisson(mean * rng.gamma(max(theta, 1e-2)) / max(theta, 1e-2))
        counts = rng.choice([0, rng.poisson(mean), scattered, np.floor(10 ** rng.uniform(0, 5))])
        rows.append((min(counts, 100_000), mean, theta, rng.normal(-1, 5)))
    for counts, mean, theta, gate in rows:
        yield int(counts), *(float(np.float32(value)) for value in (np.log(mean), np.log(theta), gate))


def write():
    """Compute the table and write it."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ARGUMENTS + RESULTS)
        for row in arguments():
            writer.writerow([*map(repr, row), *(mpmath.nstr(value, 20) for value in evaluate(*row))])


def read():
    """The table: a dictionary of float64 columns."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in ARGUMENTS + RESULTS}


if __name__ == "__main__":
    write()
