"""The laws that every row of the table of estimators obeys on a VAE."""

import copy

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI

from genailab_pyro import (
    CVAE,
    CVAE_NB,
    CVAE_ZINB,
    BernoulliVAE,
    Embedding,
    HierarchicalVAE,
    LabelVAE,
    LatentLibrary,
    Minibatch,
    estimators,
)
from genailab_pyro.estimators import EstimatorError

CELLS, GENES, LEVELS = 6, 5, 3
DECLARATIONS = {
    "normal": lambda: CVAE(GENES, 2, LEVELS, [8]),
    "nb": lambda: CVAE_NB(GENES, 2, LEVELS, [8]),
    "nb-embedding": lambda: CVAE_NB(GENES, 2, Embedding([LEVELS], 2), [8], inverse_dispersion="gene-condition"),
    "zinb-library": lambda: CVAE_ZINB(GENES, 2, LEVELS, [8], library=LatentLibrary(GENES, [3.0], [1.0], [8])),
}
ROWS = estimators.table()
NORMAL = ROWS.index[ROWS["latents"] != "discrete"]
every_row = pytest.mark.parametrize("name", NORMAL)
every_elbo = pytest.mark.parametrize("name", [name for name in NORMAL if ROWS.loc[name, "objective"] == "ELBO"])
every_declaration = pytest.mark.parametrize("build", list(DECLARATIONS.values()), ids=list(DECLARATIONS))


@pytest.fixture
def minibatch():
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((CELLS, GENES), 4.0), generator=generator) + 1
    none = torch.zeros(CELLS, 0)
    levels = (torch.arange(CELLS) % LEVELS)[:, None]
    return Minibatch(counts, levels, none, counts.sum(1), torch.arange(CELLS), 3 * CELLS)


@pytest.fixture(autouse=True)
def own_store():
    with pyro.get_param_store().scope():
        yield


def declare(build):
    torch.manual_seed(0)
    return build().eval()


@every_row
@every_declaration
def test_its_parameters_are_those_of_the_vae_and_of_the_baseline(name, build):
    vae = declare(build)
    model, guide, elbo = estimators.get(name).bind(vae.model, vae.guide)
    own = set() if elbo.baseline is None else set(elbo.baseline.parameters())
    assert bool(own) == (ROWS.loc[name, "baseline"] == "network")
    assert set(elbo(model, guide).parameters()) == set(vae.parameters()) | own
    assert set(model.parameters()) == set(guide.parameters()) == set(vae.parameters())
    assert set(elbo(vae.model, vae.guide).parameters()) == set(vae.parameters()) | own


@every_row
@every_declaration
def test_a_torch_optimizer_over_them_trains(name, build, minibatch):
    vae = declare(build)
    model, guide, elbo = estimators.get(name, num_particles=4).bind(vae.model, vae.guide)
    loss = elbo(model, guide)
    before = {key: value.clone() for key, value in vae.named_parameters()}
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.03)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(minibatch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    moved = [key for key, value in vae.named_parameters() if not torch.equal(value, before[key])]
    assert {key.split(".")[0] for key in moved} >= {"decoder", "likelihood", "encoder"}


@every_row
def test_svi_and_the_torch_module_leave_the_same_gradient(name, minibatch):
    found = []
    vae = declare(DECLARATIONS["nb"])
    for use_svi in (True, False):
        mine = copy.deepcopy(vae)
        model, guide, elbo = estimators.get(name).bind(mine.model, mine.guide)
        torch.manual_seed(1)
        if use_svi:
            value = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), elbo).loss_and_grads(model, guide, minibatch)
        else:
            loss = elbo(model, guide)(minibatch)
            loss.backward()
            value = loss.item()
        found.append((value, [parameter.grad for parameter in mine.parameters()]))
    (first, gradients), (second, others) = found
    assert first == pytest.approx(second, rel=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)


@every_row
@every_declaration
@pytest.mark.parametrize("num_particles", [1, 3])
def test_binding_does_not_change_what_the_programs_mean(name, build, num_particles, minibatch):
    vae = declare(build)
    model, guide, _ = estimators.get(name).bind(vae.model, vae.guide)
    traces = []
    for programs in ((vae.model, vae.guide), (model, guide)):
        torch.manual_seed(2)
        with pyro.plate("particles", num_particles, dim=-2):
            guide_trace = poutine.trace(programs[1]).get_trace(minibatch)
            model_trace = poutine.trace(poutine.replay(programs[0], trace=guide_trace)).get_trace(minibatch)
        traces.append((model_trace, guide_trace))
    for plain, bound in zip(*traces, strict=True):
        assert list(plain.nodes) == list(bound.nodes)
        torch.testing.assert_close(plain.log_prob_sum(), bound.log_prob_sum())


@every_elbo
def test_its_loss_is_an_unbiased_estimate_of_the_same_negative_elbo(name, minibatch):
    vae = declare(DECLARATIONS["zinb-library"])
    model, guide, elbo = estimators.get(name, num_particles=2000).bind(vae.model, vae.guide)
    torch.manual_seed(3)
    loss = elbo.loss(model, guide, minibatch)
    torch.manual_seed(4)
    with pyro.plate("particles", 2000, dim=-2), torch.no_grad():
        guide_trace = poutine.trace(vae.guide).get_trace(minibatch)
        model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(minibatch)
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
    draws = 0.0
    for trace, sign in ((guide_trace, 1), (model_trace, -1)):
        for site in ("library", "z", *(["x"] if sign < 0 else [])):
            draws = draws + sign * trace.nodes[site]["log_prob"].sum(-1)
    # Both are means over as many draws.
    error = draws.std().item() * (2 / 2000) ** 0.5
    assert abs(loss - draws.mean().item()) < 5 * error
    assert abs(loss / 3 - draws.mean().item()) > 5 * error


STRUCTURES = {
    "bits": lambda: BernoulliVAE(GENES, 3, LEVELS, [8]),
    "hierarchy": lambda: HierarchicalVAE(GENES, 3, LEVELS, [8], upper_dim=2),
    "label": lambda: LabelVAE(GENES, 3, LEVELS, [8], num_labels=4),
}
USABLE = {
    "bits": {"gumbel", "st-gumbel", "disarm", "vimco", *ROWS.index[ROWS["rule"] == "score"]},
    "hierarchy": set(NORMAL),
    "label": {"enum", "gumbel", "st-gumbel", "vimco", *ROWS.index[ROWS["rule"] == "score"]},
}


@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize("name", ROWS.index)
@pytest.mark.parametrize("more", [0, 6])
def test_a_structured_vae_trains_by_what_it_can_have_and_refuses_the_rest(structure, name, more, minibatch):
    number = ROWS.loc[name, "least_particles"] + more
    gradients = []
    for use_svi in (True, False):
        vae = declare(STRUCTURES[structure])
        model, guide, elbo = estimators.get(name, num_particles=int(number)).bind(vae.model, vae.guide)
        torch.manual_seed(1)
        if name not in USABLE[structure]:
            with pytest.raises(EstimatorError, match="use "):
                elbo(model, guide)(minibatch)
            return
        if use_svi:
            SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), elbo).loss_and_grads(model, guide, minibatch)
        else:
            elbo(model, guide)(minibatch).backward()
        gradients.append({key: value.grad for key, value in vae.named_parameters()})
    first, second = gradients
    for key, gradient in first.items():
        assert gradient is not None, key
        assert torch.isfinite(gradient).all(), key
        torch.testing.assert_close(gradient, second[key], rtol=1e-4, atol=1e-4)
        # A path or a score reaches every weight of the guide and of the model.
        assert gradient.abs().max() > 0, key
