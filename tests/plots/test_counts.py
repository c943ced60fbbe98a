"""Gene statistics are drawn where they are."""

import numpy as np
import pytest
from scipy import sparse

from genailab_pyro.plots import mean_variance, zero_fraction

RNG = np.random.default_rng(0)
MEANS = RNG.gamma(1.0, 2.0, size=50) + 0.01


def scatters(axes):
    return {points.get_label(): np.asarray(points.get_offsets()) for points in axes.collections}


def test_observed_and_generated_genes_lie_at_their_mean_and_variance():
    observed = (MEANS, MEANS + MEANS**2)
    generated = {"Poisson": (MEANS * 1.1, MEANS * 1.1), "negative binomial": (MEANS, MEANS + 0.9 * MEANS**2)}
    figure = mean_variance(observed, generated)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(generated)
    for axes, moments in zip(figure.axes, generated.values(), strict=True):
        drawn = scatters(axes)
        np.testing.assert_array_equal(drawn["observed"], np.stack(observed, axis=1))
        np.testing.assert_array_equal(drawn["generated"], np.stack(moments, axis=1))
        assert axes.get_xlabel() == "Mean over cells (counts)"
        assert axes.get_ylabel() == "Variance over cells (counts²)"
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_the_poisson_line_is_the_diagonal_and_spans_the_axes():
    (axes,) = mean_variance((MEANS, 2 * MEANS), {"m": (MEANS, MEANS)}).axes
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    assert tuple(line.get_xdata()) == axes.get_xlim()


def test_all_genes_are_within_the_axes_shared_by_the_panels():
    generated = {"small": (MEANS / 100, MEANS / 50), "large": (MEANS * 100, MEANS * 1e5)}
    figure = mean_variance((MEANS, 2 * MEANS), generated)
    assert len({(*axes.get_xlim(), *axes.get_ylim()) for axes in figure.axes}) == 1
    low, high = figure.axes[0].get_ylim()
    assert low < MEANS.min() / 50
    assert high > MEANS.max() * 1e5


def test_genes_without_variance_are_counted():
    means, variances = MEANS.copy(), 2 * MEANS
    means[:3] = variances[:3] = 0
    (axes,) = mean_variance((means, variances), {"m": (MEANS, np.where(np.arange(50) < 4, 0, MEANS))}).axes
    assert axes.get_title(loc="left").endswith("3 observed, 4 generated")
    assert {name: len(places) for name, places in scatters(axes).items()} == {"observed": 47, "generated": 46}


def test_observed_genes_can_stand_alone():
    (axes,) = mean_variance((MEANS, 2 * MEANS), {}).axes
    assert set(scatters(axes)) == {"observed"}


@pytest.mark.parametrize(
    ("observed", "generated", "error", "message"),
    [
        (
            (MEANS, MEANS[:9]),
            {},
            ValueError,
            r"observed variances must be a vector of shape \[50\], got shape \[9\]",
        ),
        ((MEANS, MEANS), {"m": (MEANS[:9], MEANS)}, ValueError, r"generated\['m'\] means .* got shape \[9\]"),
        ((-MEANS, MEANS), {}, ValueError, "observed means must not be negative"),
        ((MEANS, MEANS * np.nan), {}, ValueError, "observed variances must be finite"),
        ((MEANS * 0, MEANS), {}, ValueError, "no gene has a mean and a variance above zero"),
        ((sparse.csr_matrix(np.eye(3)), MEANS), {}, TypeError, "not a sparse matrix"),
    ],
)
def test_moments_that_cannot_be_drawn_are_named(observed, generated, error, message):
    with pytest.raises(error, match=message):
        mean_variance(observed, generated)


def test_expected_shares_are_drawn_against_the_observed_ones():
    observed, expected = RNG.random(50), {"a": RNG.random(50), "b": RNG.random(50)}
    figure = zero_fraction(observed, expected)
    for axes, (name, shares) in zip(figure.axes, expected.items(), strict=True):
        np.testing.assert_array_equal(scatters(axes)["a gene"], np.stack([observed, shares], axis=1))
        (line,) = axes.get_lines()
        assert list(line.get_xdata()) == list(line.get_ydata()) == [0, 1]
        assert axes.get_title(loc="left").startswith(name)
        assert axes.get_xlabel() == "Share of zeros observed"


def test_the_differences_over_genes_are_written():
    (axes,) = zero_fraction([0.2, 0.6], {"m": [0.1, 0.9]}).axes
    assert axes.get_title(loc="left") == "m\nmean |difference| 0.200\nmean difference +0.100"


@pytest.mark.parametrize(
    ("observed", "generated", "message"),
    [
        ([0.5, 1.2], {"m": [0.5, 0.5]}, r"observed must lie in \[0, 1\]"),
        ([0.5, 0.2], {"m": [-0.5, 0.5]}, r"generated\['m'\] must lie in \[0, 1\]"),
        ([0.5, 0.2], {"m": [0.5]}, r"generated\['m'\] must be a vector of shape \[2\]"),
        ([0.5, 0.2], {}, "at least one model"),
    ],
)
def test_shares_that_are_none_are_named(observed, generated, message):
    with pytest.raises(ValueError, match=message):
        zero_fraction(observed, generated)
