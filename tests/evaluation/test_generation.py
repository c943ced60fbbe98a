"""Scores of generated counts: perfect on copies, low on planted faults, and beside what real cells score."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse, stats

import genailab_pyro as glp
from genailab_pyro.evaluation.generation import (
    correlation_preservation,
    fidelity,
    gene_agreement,
    pathway_concordance,
    transfer_accuracy,
    two_sample_auc,
)
from genailab_pyro.evaluation.perturbation import log_normalise


@pytest.fixture(scope="module")
def adata():
    return glp.data.simulate(600, 60, num_types=3, seed=0).adata


def counts_of(adata, rows):
    return sparse.csr_matrix(adata.X[rows])


def test_the_agreement_of_genes_by_hand():
    real = sparse.csr_matrix([[1.0, 4.0, 0.0], [3.0, 8.0, 2.0]])
    other = sparse.csr_matrix([[2.0, 16.0, 0.0], [6.0, 32.0, 1.0]])
    found = gene_agreement(real, other)
    means, others = np.log([2.0, 6.0, 1.0]), np.log([4.0, 24.0, 0.5])
    assert found["mean"].rank == 1
    assert found["mean"].slope == pytest.approx(stats.linregress(means, others).slope)
    assert found["zero_fraction"].slope == pytest.approx(1)


def test_copies_agree_and_doubled_noise_does_not(adata):
    counts = counts_of(adata, range(300))
    same = gene_agreement(counts, counts)
    assert all(item.rank == pytest.approx(1) and item.slope == pytest.approx(1) for item in same.values())
    flat = counts.copy()
    flat.data[:] = np.random.default_rng(0).permutation(flat.data)
    assert gene_agreement(counts, flat)["mean"].rank < 0.6


def test_a_gene_statistic_that_does_not_vary_has_no_agreement():
    ones = sparse.csr_matrix(np.ones((4, 3)))
    assert np.isnan(gene_agreement(ones, ones)["mean"].rank)


def test_correlations_are_lost_when_genes_are_shuffled(adata):
    values = log_normalise(adata.X)
    one, other = values[:300], values[300:]
    assert correlation_preservation(one, one) == pytest.approx(1)
    kept = correlation_preservation(one, other)
    shuffled = np.stack([np.random.default_rng(gene).permutation(column) for gene, column in enumerate(other.T)], 1)
    assert kept > 0.9
    assert abs(correlation_preservation(one, shuffled)) < 0.2
    with pytest.raises(ValueError, match="at least three genes that vary"):
        correlation_preservation(one[:, :2], other[:, :2])


def test_correlations_are_of_ranks(adata):
    values = log_normalise(adata.X)
    assert correlation_preservation(values[:300], np.exp(values[:300])) == pytest.approx(1)


def test_a_classifier_cannot_tell_halves_and_tells_another_depth(adata):
    values = log_normalise(adata.X)
    number = 300
    # Of equal distributions the area has a standard deviation of sqrt((2n + 1) / (12 n^2)).
    error = ((2 * number + 1) / (12 * number**2)) ** 0.5
    assert abs(two_sample_auc(values[:number], values[number:]) - 0.5) < 5 * error
    assert two_sample_auc(values[:number], values[number:] + 0.3) > 0.9
    with pytest.raises(ValueError, match="at least 10 cells on each side, got 5"):
        two_sample_auc(values[:5], values)


def test_what_is_learned_from_shuffled_labels_does_not_transfer(adata):
    values, labels = log_normalise(adata.X), adata.obs["cell_type"].astype(str).to_numpy()
    assert transfer_accuracy(values[:300], labels[:300], values[300:], labels[300:]) > 0.9
    shuffled = np.random.default_rng(0).permutation(labels[:300])
    assert transfer_accuracy(values[:300], shuffled, values[300:], labels[300:]) < 0.6


def test_pathways_follow_groups_and_not_levels(adata):
    sets = {f"set {i}": adata.var_names[i * 10 : (i + 1) * 10] for i in range(6)}
    one, other = adata[:300], adata[300:]
    assert pathway_concordance(one, other, sets, "cell_type") > 0.9
    mixed = other.copy()
    mixed.obs["cell_type"] = np.roll(other.obs["cell_type"].cat.rename_categories(["type1", "type2", "type0"]), 0)
    assert pathway_concordance(one, mixed, sets, "cell_type") < 0.5
    with pytest.raises(ValueError, match="no gene of 'none'"):
        pathway_concordance(one, other, {"none": ["ACTB"]}, "cell_type")
    with pytest.raises(ValueError, match="at least two groups of 'batch'"):
        pathway_concordance(one, other, sets, "batch")


def test_generated_cells_are_scored_beside_real_ones(adata):
    cells = glp.register(adata, conditions=["cell_type"])
    train, test = cells.split(0.5)
    fit = glp.fit(glp.CVAE_NB.from_registration(train, latent_dim=4), train, max_epochs=60, progress=False)
    drawn = fit.generate(600, seed=1)
    real = adata[test.obs_names.tolist()]
    table = fidelity(real, drawn, groupby="cell_type", reference=adata[train.obs_names.tolist()])
    assert table.index.names == ["group", "source"]
    assert set(table.index.get_level_values("source")) == {"generated", "real"}
    assert len(table) == 6
    generated, reference = (table.xs(source, level="source") for source in ("generated", "real"))
    assert (generated["mean_rank"] > 0.8).all()
    assert (reference["auc"] < 0.65).all()
    spoilt = drawn.copy()
    spoilt.X = sparse.csr_matrix(np.random.default_rng(0).permutation(spoilt.X.toarray().T).T)
    worse = fidelity(real, spoilt, groupby="cell_type").xs("generated", level="source")
    assert (worse["auc"] > generated["auc"]).all()
    assert (worse["mean_rank"] < generated["mean_rank"]).all()


def test_halves_of_the_real_cells_are_the_reference_where_none_is_given(adata):
    table = fidelity(adata, adata[:100])
    assert table.loc[("all", "real"), ["real_cells", "other_cells"]].tolist() == [300, 300]
    assert table.loc[("all", "generated"), "other_cells"] == 100


def test_other_genes_or_too_few_cells_are_refused(adata):
    with pytest.raises(ValueError, match="over the genes of the real ones"):
        fidelity(adata, adata[:, ::-1])
    with pytest.raises(ValueError, match="a group of at least ten cells"):
        fidelity(adata, adata[:5])
    with pytest.raises(ValueError, match="the same genes on both sides, got 60 and 59"):
        gene_agreement(adata.X, adata.X[:, 1:])
    names = pd.DataFrame(index=[f"g{i}" for i in range(3)])
    with pytest.raises(ValueError, match="at least 2 cells"):
        gene_agreement(AnnData(sparse.csr_matrix(np.ones((1, 3))), var=names).X, sparse.csr_matrix(np.ones((4, 3))))
