"""Heat maps hold the change of the genes that each latent moves most, in order."""

from itertools import pairwise

import numpy as np
import pytest

from genailab_pyro.plots.traversals import traversals

STEPS = [-2.0, -1.0, 0.0, 1.0, 2.0]
GENES = [f"gene {number}" for number in range(6)]
# Change of log2(1 + count) per standard deviation: latent 1 moves more than latent 0, and latent 2 nothing.
SLOPES = np.array([[0.1, 0.0, -0.3, 0.2, 0.0, 0.0], [0.0, 0.9, 0.0, 0.0, 1.0, -1.5], [0.0] * 6])


def walks(slopes=SLOPES, base=4.0):
    return 2 ** (base + slopes[:, None, :] * np.array(STEPS)[None, :, None]) - 1


def drawn(figure):
    """Title of each panel, with its genes and the matrix under them."""
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    return {
        axes.get_title(loc="left"): (
            [label.get_text() for label in axes.get_yticklabels()],
            np.asarray(axes.images[0].get_array()),
        )
        for axes in panels
    }


def test_each_row_is_the_change_of_the_gene_under_its_name():
    shown = drawn(traversals(walks(), STEPS, genes=GENES))
    for latent in range(3):
        genes, changes = shown[f"Latent {latent}"]
        rows = [GENES.index(gene) for gene in genes]
        np.testing.assert_allclose(changes, SLOPES[latent, rows, None] * np.array(STEPS), atol=1e-9)


def test_the_genes_that_move_most_are_kept_those_that_rise_first():
    shown = drawn(traversals(walks(), STEPS, genes=GENES, num_genes=3))
    assert shown["Latent 0"][0] == ["gene 3", "gene 0", "gene 2"]
    assert shown["Latent 1"][0] == ["gene 4", "gene 1", "gene 5"]


def test_latents_are_in_order_of_their_change_or_as_asked_for():
    figure = traversals(walks(), STEPS, genes=GENES)
    assert list(drawn(figure)) == ["Latent 1", "Latent 0", "Latent 2"]
    assert figure.get_suptitle() == "Genes that each latent moves most; the strongest is gene 5, along latent 1"
    asked = traversals(walks(), STEPS, genes=GENES, latents=[2, 0])
    assert list(drawn(asked)) == ["Latent 2", "Latent 0"]
    assert asked.get_suptitle().startswith("Genes that 2 of 3 latents move most; the strongest is gene 2")


def test_all_panels_share_one_symmetric_scale_that_is_labelled():
    figure = traversals(walks(), STEPS, genes=GENES)
    assert {axes.images[0].get_clim() for axes in figure.axes if axes.images} == {(-3.0, 3.0)}
    assert "log2 fold change" in figure.axes[-1].get_xlabel()


def test_a_gene_of_which_hardly_a_count_is_expected_does_not_crowd_out_the_others():
    counts = np.full((1, 5, 2), 10.0)
    counts[0, :, 0] = 1e-6 * 100.0 ** np.array(STEPS)
    counts[0, :, 1] *= 1.5 ** np.array(STEPS)
    assert drawn(traversals(counts, STEPS, genes=["silent", "seen"], num_genes=1))["Latent 0"][0] == ["seen"]


def test_positions_are_marked_at_round_numbers_where_they_are():
    uneven = [-3.0, -1.5, 0.0, 0.5, 2.0]
    axes = traversals(walks(), uneven, genes=GENES).axes[0]
    for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        assert np.interp(place, range(5), uneven) == pytest.approx(
            float(label.get_text().replace("\N{MINUS SIGN}", "-"))
        )
    assert len(axes.get_xticks()) > 2


def test_of_many_latents_nine_are_drawn():
    figure = traversals(walks(np.linspace(1, 2, 20)[:, None] * SLOPES[1], base=6.0), STEPS, genes=GENES)
    assert list(drawn(figure)) == [f"Latent {latent}" for latent in range(19, 10, -1)]
    assert "9 of 20 latents" in figure.get_suptitle()


def test_latents_that_move_nothing_are_drawn_all_the_same():
    figure = traversals(walks(SLOPES[2:]), STEPS, genes=GENES)
    figure.draw_without_rendering()
    assert (drawn(figure)["Latent 0"][1] == 0).all()


@pytest.mark.parametrize(("latents", "num_genes"), [([1], 2), ([0, 1], 6), ([0, 1, 2] * 3, 6)])
def test_names_of_genes_do_not_overlap(latents, num_genes):
    figure = traversals(walks(), STEPS, genes=GENES, latents=latents, num_genes=num_genes)
    figure.draw_without_rendering()
    for axes in figure.axes[:-1]:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))


@pytest.mark.parametrize(
    ("counts", "positions", "options", "message"),
    [
        (walks()[0], STEPS, {}, r"counts must have shape \[latents, 5, 6\], .* got \[5, 6\]"),
        (walks()[:, :4], STEPS, {}, r"counts must have shape \[latents, 5, 6\], .* got \[3, 4, 6\]"),
        (walks()[..., :2], STEPS, {}, r"a gene for each name, got \[3, 5, 2\]"),
        (np.log(walks() / 100), STEPS, {}, "counts must be finite and not negative; pass expected counts"),
        (np.where(walks() > 9, np.nan, walks()), STEPS, {}, "counts must be finite"),
        (walks(), [1.0, 2.0, 3.0, 4.0, 5.0], {}, "positions must increase and hold 0"),
        (walks(), STEPS[::-1], {}, "positions must increase and hold 0"),
        (walks(), STEPS, {"latents": [3]}, r"latents must be indices from 0 to 2, at least one, got \[3\]"),
        (walks(), STEPS, {"latents": []}, r"at least one, got \[\]"),
        (walks(), STEPS, {"num_genes": 0}, "num_genes must be at least 1, got 0"),
    ],
)
def test_walks_that_do_not_fit_are_named(counts, positions, options, message):
    with pytest.raises(ValueError, match=message):
        traversals(counts, positions, genes=GENES, **options)
