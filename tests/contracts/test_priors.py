"""The laws that every prior obeys, those of the package and one that a user might write."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

from genailab_pyro import (
    MLP,
    VAE,
    Cells,
    Minibatch,
    NegativeBinomialLikelihood,
    NormalEncoder,
    OneHot,
    Prior,
    StandardNormal,
    estimators,
    fit,
    load,
)
from genailab_pyro.model.flows import FlowPrior
from genailab_pyro.model.priors import DependentNormal, MixtureOfNormals, StudentT, VampPrior
from genailab_pyro.nn import Declared, Unconditioned

CELLS, CONDITION, GENES = 5, 3, 6
SMALL = {"transforms": 2, "hidden_dims": (8,)}


class ConditionalNormal(Prior):
    """Location linear in the condition."""

    def __init__(self, latent_dim, condition_dim):
        super().__init__()
        self.loc = nn.Linear(condition_dim, latent_dim)

    def forward(self, condition):
        loc = self.loc(condition)
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)


# Normal priors have a KL from a normal guide in closed form, the others have not.
NORMAL = {
    "standard-normal": StandardNormal,
    "conditional-normal": lambda latent_dim: ConditionalNormal(latent_dim, CONDITION),
    "dependent-normal": lambda latent_dim: DependentNormal(CONDITION, latent_dim),
}
# The density of splines has kinks, at which a sum over a grid is less exact.
SPLINES = {
    "flow": lambda latent_dim: FlowPrior(latent_dim, **SMALL),
    "flow-conditional": lambda latent_dim: FlowPrior(latent_dim, CONDITION, **SMALL),
}
OTHERS = {
    **SPLINES,
    "student-t": StudentT,
    "mixture": lambda latent_dim: MixtureOfNormals(latent_dim, 3),
    "vamp": lambda latent_dim: VampPrior(NormalEncoder(GENES, latent_dim, [4]), GENES, 3),
}
ROSTER = {**NORMAL, **OTHERS}


def over(table):
    return pytest.mark.parametrize("build", list(table.values()), ids=list(table))


every_prior = over(ROSTER)


def condition(dtype=torch.float32):
    return nn.functional.one_hot(torch.arange(CELLS) % CONDITION, CONDITION).to(dtype)


def make(build, latent_dim):
    """A prior whose parameters are away from where they start."""
    torch.manual_seed(0)
    prior = build(latent_dim)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    return prior


def counts(number=CELLS):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.poisson(torch.full((number, GENES), 4.0), generator=generator)
    drawn[:, 0] += 1
    levels = (torch.arange(number) % CONDITION)[:, None]
    return Minibatch(drawn, levels, torch.zeros(number, 0), drawn.sum(-1), torch.arange(number), number)


def vae_of(prior):
    """A VAE with the prior's own encoder, where it has one."""
    return VAE(
        prior,
        MLP(2, [4], condition_dim=CONDITION),
        NegativeBinomialLikelihood(4, GENES),
        getattr(prior, "encoder", None) or NormalEncoder(GENES, 2, [4]),
        condition=OneHot([CONDITION]),
    )


@every_prior
@pytest.mark.parametrize("latent_dim", [1, 4])
def test_event_is_the_latent_and_batch_spreads_over_cells(build, latent_dim):
    distribution = build(latent_dim)(condition())
    assert distribution.event_shape == (latent_dim,)
    for leading in ((), (3,)):
        expanded = distribution.expand([*leading, CELLS])
        draws = expanded.sample()
        assert draws.shape == (*leading, CELLS, latent_dim)
        assert expanded.log_prob(draws).shape == (*leading, CELLS)


@every_prior
@torch.no_grad()
def test_the_density_integrates_to_one(build):
    prior = make(build, 2).double()
    # Points that lie ever wider apart reach far into a heavy tail.
    axis = torch.linspace(-8, 8, 321, dtype=torch.float64)
    grid, width = axis.sinh(), axis.cosh() * (axis[1] - axis[0])
    points, areas = torch.cartesian_prod(grid, grid), torch.cartesian_prod(width, width).prod(-1)
    exact = 1e-3 if build in SPLINES.values() else 1e-6
    for row in condition(torch.float64)[:CONDITION]:
        density = prior(row[None]).log_prob(points[:, None]).exp().squeeze(-1)
        assert (density * areas).sum().item() == pytest.approx(1, rel=exact)
        assert density.sum().item() != pytest.approx(1, rel=exact)


@every_prior
@torch.no_grad()
def test_draws_are_of_the_density(build):
    """The mean of a bounded function of draws is its integral over the density."""
    prior = make(build, 1).double()
    distribution = prior(condition(torch.float64)[1:2])  # the cells of one condition
    axis = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    grid, width = axis.sinh(), axis.cosh() * (axis[1] - axis[0])
    density = distribution.log_prob(grid[:, None, None]).exp().squeeze() * width
    draws = distribution.expand([1]).sample((4000,)).squeeze()
    functions = (torch.tanh, torch.cos, lambda z: torch.exp(-(z**2)))

    def distances(draws):
        errors = torch.stack([function(draws).std() for function in functions]) / len(draws) ** 0.5
        means = [function(draws).mean() - (function(grid) * density).sum() for function in functions]
        return torch.stack(means).abs() / errors

    assert distances(draws).max() < 5
    assert distances(draws + 0.3).max() > 5
    assert distances(1.3 * draws).max() > 5


@every_prior
def test_draws_carry_a_path_to_the_parameters_where_there_is_one(build):
    prior = build(2)
    distribution = prior(condition())
    assert not distribution.sample().requires_grad
    if distribution.has_rsample:
        assert distribution.rsample().requires_grad == bool(list(prior.parameters()))
    else:
        with pytest.raises(NotImplementedError):
            distribution.rsample()


@every_prior
def test_the_density_is_the_same_at_each_call(build):
    prior, values = make(build, 2).train(), torch.randn(CELLS, 2)
    first, second = (prior(condition()).log_prob(values) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(prior.eval()(condition()).log_prob(values), first)


@every_prior
def test_the_density_is_finite_far_from_everything(build):
    prior = make(build, 2)
    values = torch.tensor([[0.0, 0.0], [60.0, -60.0], [5.0, -5.0]])[:, None].expand(3, CELLS, 2).clone()
    values.requires_grad_()
    log_prob = prior(condition()).log_prob(values)
    assert torch.isfinite(log_prob).all()
    for gradient in torch.autograd.grad(log_prob.sum(), [values, *prior.parameters()]):
        assert torch.isfinite(gradient).all()


@every_prior
def test_it_moves_to_double_precision_without_a_weight_to_save(build):
    prior = build(2).double()
    assert prior(condition(torch.float64)).sample().dtype == torch.float64
    assert set(prior.state_dict()) == {name for name, _ in prior.named_parameters()}


@every_prior
def test_a_declaration_gives_the_same_prior(build):
    prior = build(3)
    again = Declared.declare(prior.declaration())
    assert type(again) is type(prior)
    again.load_state_dict(prior.state_dict())
    value = torch.randn(CELLS, 3)
    torch.testing.assert_close(again(condition()).log_prob(value), prior(condition()).log_prob(value))


@every_prior
def test_it_is_scored_per_cell_inside_a_vae(build):
    vae = vae_of(build(2))
    trace = poutine.trace(vae.model).get_trace(counts()._replace(counts=None))
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (CELLS,)
    expected = vae.prior(condition()).log_prob(trace.nodes["z"]["value"])
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)


@every_prior
@pytest.mark.parametrize("estimator", ["pathwise", "stl", "score", "score-loo", "iwae", "dreg", "vimco"])
def test_it_trains_with_each_estimator(build, estimator):
    torch.manual_seed(0)
    vae, minibatch = vae_of(build(2)), counts(60)
    vae.initialise(minibatch)
    before = {name: value.clone() for name, value in vae.prior.named_parameters()}
    model, guide, elbo = estimators.get(estimator, num_particles=3).bind(vae.model, vae.guide)
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        losses = torch.tensor([svi.step(minibatch) for _ in range(4)])
    assert torch.isfinite(losses).all()
    for name, value in vae.prior.named_parameters():
        assert torch.isfinite(value).all(), name
        assert not torch.equal(value, before[name]), name


@over(OTHERS)
def test_a_kl_without_a_closed_form_is_refused(build):
    vae = vae_of(build(2))
    model, guide, elbo = estimators.get("pathwise-kl").bind(vae.model, vae.guide)
    with pytest.raises(estimators.EstimatorError, match=r"whose KL has a closed form, got Normal and .*'pathwise'"):
        elbo.differentiable_loss(model, guide, counts())


@over(NORMAL)
def test_a_kl_in_closed_form_is_used(build):
    vae = vae_of(build(2))
    model, guide, elbo = estimators.get("pathwise-kl").bind(vae.model, vae.guide)
    assert torch.isfinite(elbo.differentiable_loss(model, guide, counts()))


@every_prior
def test_initialise_without_counts_leaves_everything(build):
    prior = build(2)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    prior.initialise(counts()._replace(counts=None))
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


def encoder(**options):
    return NormalEncoder(GENES, 2, [4], **options)


def test_the_vamp_prior_is_the_mean_of_the_posteriors_at_its_pseudo_inputs():
    prior = make(lambda latent_dim: VampPrior(encoder(dropout=0.0), GENES, 4), 2).double()
    pseudo = prior.counts()
    assert (pseudo > 0).all()
    none = torch.zeros(4, 0, dtype=torch.float64)
    posterior = prior.encoder(Minibatch(pseudo, none.long(), none, pseudo.sum(-1), torch.arange(4), 4))
    values = torch.randn(CELLS, 1, 2, dtype=torch.float64)
    expected = posterior.log_prob(values).exp().mean(-1).log()
    torch.testing.assert_close(prior(none).log_prob(values.squeeze(1)), expected, rtol=1e-6, atol=0)


def test_the_pseudo_inputs_begin_with_the_total_and_become_cells():
    torch.manual_seed(0)
    prior, minibatch = VampPrior(encoder(), GENES, 4, total=300.0), counts(60)
    assert ((prior.counts().sum(-1) - 300).abs() < 1).all()
    prior.initialise(minibatch)
    found = prior.counts().round()
    rows = [(minibatch.counts == row).all(-1).nonzero()[0].item() for row in found]
    assert len(set(rows)) == 4
    assert rows != sorted(rows)
    few = VampPrior(encoder(), GENES, 7)
    few.initialise(counts(3))
    assert len(few.counts().round().unique(dim=0)) == 3


def test_pseudo_inputs_do_not_change_the_encoder_of_the_cells():
    enc = encoder(dropout=0.5, norm="batch")
    enc.trunk.layers[2].eval()  # a part in a mode of its own
    prior = VampPrior(enc, GENES, 4)
    modes = [part.training for part in enc.modules()]
    buffers = {name: value.clone() for name, value in enc.named_buffers()}
    prior(condition())
    assert [part.training for part in enc.modules()] == modes
    assert buffers
    assert all(torch.equal(value, buffers[name]) for name, value in enc.named_buffers())
    first, second = (enc(counts()).mean for _ in range(2))
    assert not torch.equal(first, second)


def test_an_encoder_of_the_vamp_prior_reads_counts_alone():
    with pytest.raises(ValueError, match=r"reads counts alone .* got NormalEncoder that reads a condition"):
        VampPrior(encoder(condition=OneHot([CONDITION])), GENES)
    with pytest.raises(ValueError, match="got NormalEncoder that reads an upper latent"):
        VampPrior(encoder(upper_dim=3), GENES)
    assert VampPrior(encoder(condition=Unconditioned()), GENES)(condition()).event_shape == (2,)


@pytest.mark.parametrize("copied", ["declared", "deep-copied"])
def test_the_encoder_of_the_vamp_prior_stays_that_of_the_vae(copied):
    vae = vae_of(VampPrior(encoder(), GENES, 3))
    again = Declared.declare(vae.declaration()) if copied == "declared" else copy.deepcopy(vae)
    again.load_state_dict(vae.state_dict())
    assert again.prior.encoder is again.encoder
    assert again.encoder is not vae.encoder
    names = [name for name, _ in again.named_parameters() if "encoder" in name]
    assert len(names) == len(list(again.encoder.parameters()))


def test_a_fit_with_a_vamp_prior_is_saved_and_loaded(tmp_path):
    cells = Cells.from_tensors(counts(60).counts)
    vae = VAE(VampPrior(enc := encoder(), GENES, 3), MLP(2, [4]), NegativeBinomialLikelihood(4, GENES), enc)
    trained = fit(vae, cells, max_epochs=1, progress=False)
    trained.save(tmp_path / "fit")
    loaded = load(tmp_path / "fit")
    assert loaded.vae.prior.encoder is loaded.vae.encoder
    expected, found = (each.log_likelihood(cells, num_particles=5) for each in (trained, loaded))
    assert (expected == found).all()


def test_what_is_not_a_width_is_refused():
    for build in (StudentT, MixtureOfNormals):
        with pytest.raises(ValueError, match="expected widths of at least one, got latent_dim=0"):
            build(0)
    with pytest.raises(ValueError, match="got latent_dim=2, num_components=0"):
        MixtureOfNormals(2, 0)
    with pytest.raises(ValueError, match="got genes=6, num_components=0"):
        VampPrior(encoder(), GENES, 0)
    with pytest.raises(ValueError, match="expected a total count above zero for the pseudo-inputs, got 0"):
        VampPrior(encoder(), GENES, total=0)
    with pytest.raises(ValueError, match=r"expected degrees of freedom above zero, got -1\.0"):
        StudentT(2, -1.0)


def test_tails_are_heavier_with_fewer_degrees():
    far = torch.full((1, 2), 8.0)
    tails = [StudentT(2, degrees)(condition()).log_prob(far).item() for degrees in (2, 5, 50)]
    assert tails == sorted(tails, reverse=True)
    assert tails[-1] > StandardNormal(2)(condition()).log_prob(far).item()
