"""A label above the latents that is known of some cells."""

import numpy as np
import pytest
import torch

import genailab_pyro as glp
from genailab_pyro import estimators
from genailab_pyro.analysis.classify import label_probabilities, predict_labels
from genailab_pyro.data.simulate import CellTypes
from genailab_pyro.model.structured import SemiSupervisedVAE
from genailab_pyro.model.upper import UpperLabel

GENES, LATENT, LABELS = 12, 3, 4
ESTIMATORS = ["enum", "gumbel", "st-gumbel", "score-loo", "score-graph-ema"]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def simulated(num_cells, num_genes, *, known, num_types=LABELS, hidden=(), separation=1.0, seed=2):
    """Cells of which a few of each type have their label, types that are hidden excepted; and the types of all."""
    types = CellTypes(separation=separation)
    adata, truth = glp.data.simulate(num_cells, num_genes, num_types=num_types, types=types, seed=seed)
    labels = np.full(num_cells, -1)
    for code in set(range(num_types)) - set(hidden):
        rows = np.flatnonzero(truth.types == code)[:known]
        labels[rows] = code
    adata.obs["label"] = adata.obs["cell_type"].astype(object).where(labels >= 0)
    return adata, truth.types


@pytest.fixture(scope="module")
def cells():
    return glp.register(simulated(90, GENES, known=8)[0], labels="label")


def declare(cells, **options):
    return SemiSupervisedVAE.from_registration(cells, latent_dim=LATENT, hidden_dims=[8], **options).eval()


def without_label(cells, code):
    """The cells whose label is another or not known."""
    return cells.subset(cells.labels != code)


def test_the_labels_are_those_that_are_registered(cells):
    vae = declare(cells)
    assert vae.upper.output_dim == len(cells.registration.labels.levels) == LABELS
    assert vae.upper.seen.all()
    assert [head.site for head in vae.heads] == ["annotation"]
    glp.check_pair(vae.model, vae.guide, cells.take(range(20)))


@pytest.mark.parametrize("labels", [None, "none known"])
def test_cells_without_labels_are_refused(labels, cells):
    found = glp.register(cells.adata) if labels is None else cells.subset(cells.labels < 0)
    with pytest.raises(ValueError, match=r"expected cells of which some have a label.*register\(adata, labels=...\)"):
        declare(found)


def test_something_else_than_cells_is_refused(cells):
    with pytest.raises(TypeError, match=r"expected cells from glp\.register"):
        SemiSupervisedVAE.from_registration(cells.adata)


def test_enumeration_gives_the_bound_that_draws_of_the_label_have_on_average(cells):
    vae, minibatch = declare(cells), cells.take(range(90))
    bounds = {}
    for name in ("enum", "drawn"):
        estimator = glp.Estimator("pathwise-or-score") if name == "drawn" else name
        model, guide, elbo = estimators.get(estimator).bind(vae.model, vae.guide)
        torch.manual_seed(4)
        with torch.no_grad():
            bounds[name] = np.array([elbo.loss(model, guide, minibatch) for _ in range(300)])
    error = (sum(found.var() for found in bounds.values()) / 300) ** 0.5
    difference = abs(bounds["enum"].mean() - bounds["drawn"].mean())
    assert difference < 5 * error
    with torch.no_grad():
        annotated = vae.heads[0](None, minibatch, vae.upper.posterior(minibatch).probs)
    without = (minibatch.labels >= 0) * annotated.log_prob(minibatch.labels.clamp(min=0)) * vae.heads[0].weight
    assert abs(without.sum().item()) > 5 * error  # so that a bound without the annotations is told from it


def test_the_annotations_draw_the_classifier_to_them(cells):
    vae = declare(cells)
    with torch.no_grad():
        vae.upper.head.weight.zero_()
        vae.upper.head.bias.zero_()
    minibatch = cells.take(np.flatnonzero(cells.labels == 1))
    model, guide, elbo = estimators.get("enum").bind(vae.model, vae.guide)
    gradients = []
    for labels in (minibatch.labels, torch.full_like(minibatch.labels, 3)):
        vae.zero_grad()
        torch.manual_seed(6)
        elbo.differentiable_loss(model, guide, minibatch._replace(labels=labels)).backward()
        gradients.append(vae.upper.head.bias.grad.clone())
    change = gradients[0] - gradients[1]
    # w log p(y | label) is larger by w log((1 - eps) (K - 1) / eps) at the annotation; q is uniform over four labels.
    expected = minibatch.num_cells * vae.heads[0].weight * np.log(0.99 * 3 / 0.01) / 4
    torch.testing.assert_close(change, torch.tensor([0.0, -expected, 0.0, expected]).float(), rtol=1e-3, atol=1.0)


class TestUnseenLabels:
    @pytest.fixture
    def vae(self, cells):
        vae = declare(without_label(cells, 2))
        with torch.no_grad():  # whatever is learned
            vae.upper.logits[2] += 50
            vae.upper.head.bias[2] += 1000
        return vae

    def test_they_are_those_that_no_cell_is_known_to_have(self, vae):
        assert vae.upper.seen.tolist() == [True, True, False, True]

    def test_they_have_no_probability_in_prior_and_posterior(self, vae, cells):
        minibatch = cells.take(range(90))
        for distribution in (vae.upper.prior(minibatch.library[:, None]), vae.upper.posterior(minibatch)):
            assert distribution.probs[..., 2].max() < 1e-12
            torch.testing.assert_close(distribution.probs.sum(-1), torch.ones(distribution.batch_shape))

    @every_estimator
    def test_the_gradients_are_finite(self, vae, cells, estimator):
        minibatch = without_label(cells, 2).take(range(40))
        model, guide, elbo = estimators.get(estimator).bind(vae.model, vae.guide)
        torch.manual_seed(7)
        loss = elbo.differentiable_loss(model, guide, minibatch)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(value.grad).all() for value in vae.parameters() if value.grad is not None)
        assert vae.upper.head.bias.grad[2].abs() < 1e-3 < vae.upper.head.bias.grad.abs().max()

    @pytest.mark.parametrize("unseen", [range(3), [3], [-1]])
    def test_codes_that_are_none_and_all_of_them_are_refused(self, unseen):
        with pytest.raises(ValueError, match=r"expected codes of unseen labels from 0 to 2.*unseen="):
            UpperLabel(GENES, 3, unseen=[*unseen])


def test_it_starts_as_a_regression_of_the_annotated_cells():
    adata, types = simulated(300, 40, known=10, separation=2.0)
    vae = declare(glp.register(adata, labels="label"))
    upper = vae.upper
    minibatch = glp.register(adata).take(range(300))
    with torch.no_grad():
        found = upper.posterior(minibatch).probs.argmax(-1).numpy()
    assert (found == types).mean() > 0.9


@pytest.mark.parametrize("seen", [[0, 1], [3], [1, 2, 3]])
def test_it_starts_from_as_many_labels_as_are_known(seen):
    adata, _ = simulated(200, 40, known=10, separation=2.0)
    every = glp.register(adata, labels="label")
    cells = every.subset(np.isin(every.labels, [*seen, -1]))
    vae, known = declare(cells), cells.subset(cells.labels >= 0)
    with torch.no_grad():
        found = vae.upper.posterior(known.take(range(len(known)))).probs.argmax(-1).numpy()
    assert (found == known.labels).mean() > 0.9


def test_all_annotated_cells_of_a_large_data_set_are_looked_at_first():
    adata, _ = simulated(3000, GENES, known=3)
    cells = glp.register(adata, labels="label")
    order = np.random.default_rng(0).permutation(3000)
    sample = SemiSupervisedVAE._sample(cells, order)
    assert len({*sample}) == 1024
    assert (cells.labels[sample] >= 0).sum() == 3 * LABELS


@every_estimator
def test_it_trains_tells_labels_and_is_loaded(estimator, cells, tmp_path):
    some = without_label(cells, 2)
    vae = SemiSupervisedVAE.from_registration(some, latent_dim=LATENT, hidden_dims=[8])
    fit = glp.fit(vae, some, estimator, max_epochs=3, minibatch_size=32, progress=False)
    loaded = glp.load(fit.save(tmp_path / "fit"))
    assert loaded.vae.upper.seen.tolist() == [True, True, False, True]
    found = label_probabilities(loaded, cells.adata)
    np.testing.assert_allclose(found, label_probabilities(fit, cells), rtol=1e-5, atol=1e-7)
    assert cells.registration.labels.levels[2] not in set(predict_labels(loaded, cells.adata))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["enum", "gumbel", "score-loo"])
def test_few_labels_are_enough_to_tell_the_others(estimator):
    adata, types = simulated(700, 80, known=10, num_types=6, hidden=[5], separation=1.0, seed=4)
    every = glp.register(adata, labels="label")
    vae = SemiSupervisedVAE.from_registration(every, latent_dim=5, hidden_dims=[32])
    fit = glp.fit(vae, every, estimator, max_epochs=20, progress=False)
    judged = (every.labels < 0) & (types < 5)
    assert (label_probabilities(fit).to_numpy().argmax(1) == types)[judged].mean() > 0.9
