"""Counts that know their non-zero values give what the same counts give that do not."""

import copy
import functools
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Tensor

from genailab_pyro import CVAE_NB, CVAE_ZINB, Minibatch
from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial, formulas
from genailab_pyro.distributions.formulas import negative_binomial_log_prob
from genailab_pyro.sparse import CountTensor, Nonzeros, counts_tensor, nonzeros_of

CELLS, GENES, PARTICLES = 5, 6, 3
INFINITY = float("inf")


def plain(log_mean, log_theta, gate_logits):
    return NegativeBinomial(log_mean, log_theta, validate_args=False).to_event(1)


def inflated(log_mean, log_theta, gate_logits):
    distribution = ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=gate_logits, validate_args=False)
    return distribution.to_event(1)


families = pytest.mark.parametrize("family", [plain, inflated])
# Whatever can not be batched is done by torch in a loop, which it says once.
loops_of_torch = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.fixture(autouse=True)
def _own_parameter_store():
    with pyro.get_param_store().scope():
        yield


def mixed(cells=CELLS, genes=GENES, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.choice([1, 1, 2, 3, 40, 2000], (cells, genes)) * (rng.random((cells, genes)) < 0.4)
    return torch.tensor(counts, dtype=torch.float64)


def emptied(rows=(), columns=()):
    counts = mixed() + 1
    counts[list(rows)] = 0
    counts[:, list(columns)] = 0
    return counts


PATTERNS = {
    "mixed": mixed(),
    "rows of zeros": emptied(rows=(0, 3, 4)),
    "columns of zeros": emptied(columns=(0, 2, 5)),
    "all zero": torch.zeros(CELLS, GENES, dtype=torch.float64),
    "no zero": emptied(),
    "only ones": mixed().clamp(max=1),
    "no ones": torch.where(mixed() == 1, 7.0, mixed()),
    "one cell": mixed(cells=1),
    "one gene": mixed(genes=1),
}
patterns = pytest.mark.parametrize("counts", PATTERNS.values(), ids=PATTERNS)


def knowing(counts):
    """The same counts, which know their non-zero values."""
    counts = counts.clone()
    return CountTensor.of(counts, Nonzeros.of(sp.csr_matrix(counts.numpy())))


def draws(*shape, seed=0, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def evaluated(family, counts, arguments, weights=None):
    """Log-probabilities and the derivatives of their weighted sum by each argument of the family."""
    leaves = [item.detach().clone().requires_grad_() for item in arguments]
    log_prob = family(*leaves).log_prob(counts)
    weights = draws(*log_prob.shape, seed=9) if weights is None else weights
    used = leaves if family is inflated else leaves[:2]
    return (log_prob.detach(), *torch.autograd.grad((weights * log_prob).sum(), used))


def assert_same_in_both_forms(family, counts, arguments, weights=None):
    found, expected = (evaluated(family, item, arguments, weights) for item in (knowing(counts), counts))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        alone = family(*arguments).log_prob(knowing(counts))
    torch.testing.assert_close(alone, expected[0], rtol=1e-12, atol=0)
    return found


@pytest.fixture
def gamma_functions(monkeypatch):
    """The counts at which gamma functions, and at which their derivatives, are taken."""
    taken = {"_of_positive": [], "_digamma_rise": []}
    for name, seen in taken.items():
        whole = getattr(formulas, name)

        def recorded(counts, *arguments, whole=whole, seen=seen):
            seen.append(counts)
            return whole(counts, *arguments)

        monkeypatch.setattr(formulas, name, recorded)
    return taken


@patterns
@families
def test_both_forms_agree_whatever_is_zero(family, counts):
    genes = counts.shape[1]
    arguments = draws(*counts.shape), draws(genes, seed=1, scale=3), draws(*counts.shape, seed=2)
    assert_same_in_both_forms(family, counts, arguments)


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (1,),
        (GENES,),
        (1, GENES),
        (CELLS, 1),
        (CELLS, GENES),
        (PARTICLES, CELLS, GENES),
        (PARTICLES, 1, GENES),
        (PARTICLES, 1, 1),
        (2, PARTICLES, 1, GENES),
    ],
    ids=str,
)
@pytest.mark.parametrize("lead", [(), (PARTICLES,), (2, PARTICLES)], ids=str)
@families
def test_both_forms_agree_at_every_shape_of_dispersions_and_gates(family, lead, shape):
    log_mean = draws(*lead, CELLS, GENES)
    assert_same_in_both_forms(family, mixed(), (log_mean, draws(*shape, seed=1, scale=3), draws(*shape, seed=2)))


@pytest.mark.parametrize("lead", [(), (PARTICLES,)], ids=str)
@families
def test_both_forms_agree_at_dispersions_gathered_by_condition(family, lead):
    by_condition, gate_logits = draws(GENES, 4, seed=1).requires_grad_(), draws(GENES)
    conditions = torch.tensor([3, 0, 0, 1, 3])

    def gathered(counts):
        log_theta = by_condition[:, conditions].t().contiguous()
        log_prob = family(draws(*lead, CELLS, GENES), log_theta, gate_logits).log_prob(counts)
        return log_prob.detach(), *torch.autograd.grad(log_prob.pow(2).sum(), by_condition)

    found = gathered(knowing(mixed()))
    torch.testing.assert_close(found, gathered(mixed()), rtol=1e-12, atol=1e-12)
    assert (found[1][:, 2] == 0).all()
    assert (found[1][:, 3] != 0).all()


@families
def test_particles_that_are_the_same_get_the_same(family):
    log_mean = draws(CELLS, GENES)
    rest = draws(GENES, seed=1), draws(GENES, seed=2)
    one = family(log_mean, *rest).log_prob(knowing(mixed()))
    together = family(log_mean.expand(PARTICLES, -1, -1), *rest).log_prob(knowing(mixed()))
    torch.testing.assert_close(together, one.expand(PARTICLES, -1), rtol=1e-14, atol=0)


@families
def test_a_mean_of_zero_makes_zeros_certain_and_counts_impossible(family):
    counts, log_mean = mixed(), draws(CELLS, GENES)
    counts[:2, ::2] = 0
    log_mean[:, ::2] = -INFINITY
    arguments = log_mean, draws(GENES, seed=1), draws(GENES, seed=2)
    log_prob, *gradients = assert_same_in_both_forms(family, counts, arguments, torch.ones(CELLS))
    impossible = (counts[:, ::2] > 0).any(1)
    assert (log_prob[impossible] == -INFINITY).all()
    without = family(*(item[..., 1::2] for item in arguments)).log_prob(counts[:, 1::2])
    torch.testing.assert_close(log_prob[~impossible], without[~impossible])
    assert 0 < impossible.sum() < CELLS
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("log_theta", [-INFINITY, -500.0, -60.0, -9.0, 0.0, 18.0, 60.0, 500.0, INFINITY])
@pytest.mark.parametrize("log_mean", [-100.0, -9.0, 0.0, 11.0, 100.0])
@families
def test_both_forms_agree_at_the_ends_of_the_range(family, log_mean, log_theta):
    counts = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 1e5]], dtype=torch.float64)
    arguments = [torch.tensor(item, dtype=torch.float64).expand(2, 3) for item in (log_mean, log_theta, 0.5)]
    weights = torch.ones(2)
    found, expected = (evaluated(family, item, arguments, weights) for item in (knowing(counts), counts))
    assert all(item.isfinite().all() for item in found)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    # A derivative is no better than the rounding of what cancels in it.
    size = 1 + counts.sum(-1, keepdim=True) + expected[0].abs()[:, None]
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert ((mine - other).abs() <= 1e-12 * size).all()


@pytest.mark.parametrize("log_theta", [-60.0, 60.0])
@pytest.mark.parametrize("log_mean", [-100.0, 0.0, 80.0])
def test_nothing_overflows_in_single_precision(log_mean, log_theta):
    counts = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 1e5]])
    arguments = torch.full((2, 3), log_mean), torch.full((3,), log_theta), torch.full((3,), 0.5)
    for family in (plain, inflated):
        assert all(item.isfinite().all() for item in evaluated(family, knowing(counts), arguments))


@pytest.mark.parametrize("gate_logits", [-INFINITY, -200.0, 200.0])
def test_both_forms_agree_at_saturated_gates(gate_logits):
    gate = torch.full((GENES,), gate_logits, dtype=torch.float64)
    arguments = draws(CELLS, GENES), draws(GENES, seed=1), gate
    log_prob, *gradients = assert_same_in_both_forms(inflated, mixed(), arguments)
    assert all(item.isfinite().all() for item in (log_prob, *gradients))
    if gate_logits < 0:
        torch.testing.assert_close(log_prob, plain(*arguments).log_prob(mixed()))


@families
def test_gamma_functions_are_taken_at_counts_above_one_alone(family, gamma_functions):
    counts, log_mean = mixed(), draws(PARTICLES, CELLS, GENES)
    several = counts[counts > 1]
    evaluated(family, knowing(counts), (log_mean, draws(GENES, seed=1), draws(GENES, seed=2)))
    with torch.no_grad():
        family(log_mean, draws(GENES), draws(GENES)).log_prob(knowing(counts))
    assert 0 < len(several) < (counts > 0).sum()
    for seen in gamma_functions.values():
        assert all(torch.equal(values, several) for values in seen)
    assert [len(seen) for seen in gamma_functions.values()] == [2, 1]


@families
def test_what_is_not_whole_is_taken_as_in_the_dense_form(family):
    arguments = draws(CELLS, GENES), draws(GENES, seed=1), draws(GENES, seed=2)
    assert_same_in_both_forms(family, 0.3 * mixed(), arguments)


def test_the_dense_form_takes_gamma_functions_everywhere(gamma_functions):
    evaluated(plain, mixed(), (draws(CELLS, GENES), draws(GENES), draws(GENES)))
    assert [[len(values.flatten()) for values in seen] for seen in gamma_functions.values()] == [[CELLS * GENES]] * 2


@families
def test_arguments_and_counts_are_left_as_they_are(family):
    counts = knowing(mixed())
    arguments = draws(CELLS, GENES), draws(CELLS, GENES, seed=1), draws(CELLS, GENES, seed=2)
    before = [item.clone() for item in arguments]
    family(*(item.clone().requires_grad_() for item in arguments)).log_prob(counts).sum().backward()
    with torch.no_grad():
        family(*arguments).log_prob(counts)
    assert torch.equal(counts, mixed())
    assert torch.equal(counts.nonzeros.dense(), mixed())
    assert all(torch.equal(*pair) for pair in zip(arguments, before, strict=True))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)], ids=str)
def test_gradients_reach_what_requires_them_and_nothing_else(wanted):
    arguments = [draws(CELLS, GENES, seed=position) for position in range(3)]
    expected = evaluated(inflated, mixed(), arguments, torch.ones(CELLS))[1:]
    for position in wanted:
        arguments[position].requires_grad_()
    counts = knowing(mixed())
    inflated(*arguments).log_prob(counts).sum().backward()
    for position, (argument, gradient) in enumerate(zip(arguments, expected, strict=True)):
        if position in wanted:
            torch.testing.assert_close(argument.grad, gradient, rtol=1e-12, atol=1e-12)
        else:
            assert argument.grad is None
    assert counts.grad is None


def test_nothing_is_recorded_where_nothing_requires_a_gradient():
    arguments = [draws(CELLS, GENES, seed=position) for position in range(3)]
    for family in (plain, inflated):
        assert not family(*arguments).log_prob(knowing(mixed())).requires_grad


def test_derivatives_by_the_counts_are_those_of_the_dense_form():
    def by_counts(counts):
        counts.requires_grad_()
        return torch.autograd.grad(plain(draws(CELLS, GENES), draws(GENES), None).log_prob(counts).sum(), counts)[0]

    torch.testing.assert_close(by_counts(knowing(mixed())), by_counts(mixed()), rtol=1e-12, atol=1e-12)


@families
def test_gradcheck_to_second_order(family):
    counts = knowing(mixed(3, 4).clamp(max=5))
    assert counts.nonzeros.others.values.numel()
    leaves = [draws(*shape, seed=seed, scale=1) for seed, shape in enumerate(((2, 3, 4), (4,), (3, 4)))]
    leaves = [leaf.requires_grad_() for leaf in leaves][: 3 if family is inflated else 2]

    def log_prob(*leaves):
        return family(*leaves, *([None] * (3 - len(leaves)))).log_prob(counts)

    assert torch.autograd.gradcheck(log_prob, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(log_prob, leaves)


@families
def test_second_derivatives_are_those_of_the_dense_form(family):
    def second(counts):
        leaves = [draws(CELLS, GENES, seed=position).requires_grad_() for position in range(3)]
        used = leaves if family is inflated else leaves[:2]
        first = torch.autograd.grad(family(*leaves).log_prob(counts).sum(), used, create_graph=True)
        return *first, *torch.autograd.grad(sum(gradient.pow(2).sum() for gradient in first), used)

    torch.testing.assert_close(second(knowing(mixed())), second(mixed()), rtol=1e-12, atol=1e-12)


def transformed(family, transform):
    """A transform of the log-probability as a function of the log mean, or of the log inverse dispersion."""
    log_mean, *others = draws(CELLS, GENES), draws(GENES, seed=1), draws(GENES, seed=2)

    def of_mean(counts, log_mean):
        return family(log_mean, *others).log_prob(counts)

    def of_theta(counts, log_theta):
        return family(log_mean, log_theta, others[1]).log_prob(counts)

    return {
        "vmap by mean": lambda counts: torch.func.vmap(functools.partial(of_mean, counts))(
            draws(PARTICLES, CELLS, GENES)
        ),
        "vmap by dispersion": lambda counts: torch.func.vmap(functools.partial(of_theta, counts))(
            draws(PARTICLES, GENES)
        ),
        "vmap by counts": lambda counts: torch.func.vmap(functools.partial(of_mean, log_mean=log_mean))(
            torch.stack([counts, counts + 1])
        ),
        "vmap by cells": lambda counts: torch.func.vmap(of_mean)(counts, draws(CELLS, GENES)),
        "grad": lambda counts: torch.func.grad(lambda item: of_mean(counts, item).sum())(draws(CELLS, GENES)),
        "jacrev": lambda counts: torch.func.jacrev(functools.partial(of_theta, counts))(draws(GENES)),
        "jvp": lambda counts: torch.func.jvp(
            functools.partial(of_mean, counts), (draws(CELLS, GENES),), (draws(CELLS, GENES, seed=3),)
        ),
        "jvp by dispersion": lambda counts: torch.func.jvp(
            functools.partial(of_theta, counts), (draws(GENES),), (draws(GENES, seed=3),)
        ),
    }[transform]


@loops_of_torch
@pytest.mark.parametrize(
    "transform",
    [
        "vmap by mean",
        "vmap by dispersion",
        "vmap by counts",
        "vmap by cells",
        "grad",
        "jacrev",
        "jvp",
        "jvp by dispersion",
    ],
)
@families
def test_transforms_are_those_of_the_dense_form(family, transform):
    result = transformed(family, transform)
    torch.testing.assert_close(result(knowing(mixed())), result(mixed()), rtol=1e-12, atol=1e-12)


@families
def test_a_batch_of_gradients_is_that_of_the_dense_form(family):
    def jacobian(counts):
        log_theta = draws(GENES, seed=1).requires_grad_()
        log_prob = family(draws(CELLS, GENES), log_theta, draws(GENES)).log_prob(counts)
        directions = torch.eye(CELLS, dtype=torch.float64)
        return torch.autograd.grad(log_prob, log_theta, directions, is_grads_batched=True)[0]

    torch.testing.assert_close(jacobian(knowing(mixed())), jacobian(mixed()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("family", "position"), [(plain, 0), (plain, 1), (inflated, 0), (inflated, 1), (inflated, 2)])
def test_provenance_passes_through(family, position, gamma_functions):
    arguments = [draws(CELLS, GENES, seed=seed).requires_grad_() for seed in range(3)]
    used = arguments if family is inflated else arguments[:2]
    expected = family(*arguments).log_prob(mixed())
    for seen in gamma_functions.values():
        seen.clear()
    tracked = list(arguments)
    tracked[position] = track_provenance(arguments[position], frozenset({"z"}))
    log_prob = family(*tracked).log_prob(knowing(mixed()))
    assert get_provenance(log_prob) == {"z"}
    torch.testing.assert_close(log_prob._t, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(log_prob._t.sum(), used), torch.autograd.grad(expected.sum(), used)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert all(len(seen[0]) == (mixed() > 1).sum() for seen in gamma_functions.values() if seen)


def test_provenance_of_the_counts_passes_through():
    log_prob = inflated(draws(CELLS, GENES), draws(GENES), draws(GENES))
    tracked = track_provenance(knowing(mixed()), frozenset({"counts"}))
    assert get_provenance(log_prob.log_prob(tracked)) == {"counts"}
    torch.testing.assert_close(log_prob.log_prob(tracked)._t, log_prob.log_prob(mixed()), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "again",
    [
        lambda counts: counts.base_dist,
        lambda counts: counts.to_event(1),
        lambda counts: counts.base_dist.to_event(),
        lambda counts: counts.base_dist.expand((PARTICLES, CELLS, GENES)).to_event(1),
        lambda counts: counts.expand((PARTICLES, CELLS)),
        lambda counts: counts.base_dist.mask(torch.arange(GENES) % 2 == 0).to_event(1),
        lambda counts: counts.mask(torch.arange(CELLS) % 2 == 0),
        copy.deepcopy,
    ],
    ids=["genes", "event in event", "one event", "expanded", "expanded event", "mask", "masked event", "copy"],
)
@families
def test_declarations_made_of_another_agree(family, again):
    counts = again(family(draws(CELLS, GENES), draws(GENES, seed=1), draws(GENES, seed=2)))
    found, expected = counts.log_prob(knowing(mixed())), counts.log_prob(mixed())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.shape == counts.batch_shape


@families
def test_validation_accepts_counts_that_know_their_zeros(family):
    arguments = draws(CELLS, GENES), draws(GENES, seed=1)
    if family is plain:
        checked = NegativeBinomial(*arguments, validate_args=True).to_event(1)
    else:
        checked = ZeroInflatedNegativeBinomial(*arguments, gate_logits=draws(GENES), validate_args=True).to_event(1)
    torch.testing.assert_close(checked.log_prob(knowing(mixed())), checked.log_prob(mixed()), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="support"):
        checked.log_prob(knowing(-mixed()))


class Program:
    """A latent of each cell, drawn with or without a reparametrisation, above masked and scaled counts."""

    def __init__(self, family, counts, reparametrised):
        self.family, self.data, self.reparametrised = family, counts, reparametrised
        self.names = ["logits", "log_mean", "log_theta", "gate_logits"][: 4 if family is inflated else 3]

    def parameter(self, name):
        shape = (CELLS,) if name == "logits" else (GENES,)
        return pyro.param(name, draws(*shape, seed=self.names.index(name))) if name in self.names else None

    def latent(self, logits):
        if self.reparametrised:
            return dist.Normal(logits, torch.ones((), dtype=torch.float64))
        return dist.Bernoulli(logits=logits)

    def cells(self):
        mask = poutine.mask(mask=torch.arange(CELLS) != 2)
        scale = poutine.scale(scale=0.3)
        return mask, scale, pyro.plate("cells", 10 * CELLS, subsample_size=CELLS)

    def model(self):
        mask, scale, plate = self.cells()
        log_mean, log_theta, gate_logits = map(self.parameter, ("log_mean", "log_theta", "gate_logits"))
        with mask, scale, plate:
            z = pyro.sample("z", self.latent(torch.zeros((), dtype=torch.float64)))
            likelihood = self.family(log_mean + 0.7 * z[..., None], log_theta, gate_logits)
            pyro.sample("x", likelihood, obs=self.data)

    def guide(self):
        mask, scale, plate = self.cells()
        with mask, scale, plate:
            pyro.sample("z", self.latent(self.parameter("logits")))

    def loss_and_gradients(self, elbo, guide=None):
        pyro.set_rng_seed(0)
        with pyro.get_param_store().scope():
            loss = elbo.loss_and_grads(self.model, self.guide if guide is None else guide)
            gradients = [pyro.param(name).grad for name in self.names]
        assert all(gradient.any() for gradient in gradients)
        return torch.tensor(loss), gradients


def options(particles):
    return {"num_particles": particles, "vectorize_particles": particles > 1, "max_plate_nesting": 1}


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize(
    ("elbo", "reparametrised"), [(Trace_ELBO, True), (Trace_ELBO, False), (TraceGraph_ELBO, False)]
)
@families
def test_bounds_and_their_gradients_agree(family, elbo, reparametrised, particles, gamma_functions):
    found, expected = (
        Program(family, counts, reparametrised).loss_and_gradients(elbo(**options(particles)))
        for counts in (knowing(mixed()), mixed())
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert [len(seen[0]) for seen in gamma_functions.values()] == [(mixed() > 1).sum()] * 2


@pytest.mark.parametrize("particles", [1, 4])
@families
def test_enumerated_bounds_and_their_gradients_agree(family, particles):
    found, expected = (
        program.loss_and_gradients(TraceEnum_ELBO(**options(particles)), config_enumerate(program.guide))
        for program in (Program(family, counts, False) for counts in (knowing(mixed()), mixed()))
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def minibatch(dtype=torch.float64):
    counts = mixed().to(dtype)
    counts[:, 0] += 1
    conditions, no_covariates = (torch.arange(CELLS) % 2)[:, None], torch.zeros(CELLS, 0, dtype=dtype)
    return Minibatch(counts, conditions, no_covariates, counts.sum(1), torch.arange(CELLS), CELLS)


@pytest.mark.parametrize("inverse_dispersion", ["gene", "gene-condition", "gene-cell"])
@pytest.mark.parametrize("declared", [CVAE_NB, CVAE_ZINB])
def test_a_model_takes_the_same_step(declared, inverse_dispersion):
    pyro.set_rng_seed(0)
    vae = declared(GENES, 2, 2, [4], dropout=0.0, inverse_dispersion=inverse_dispersion).double()
    dense = minibatch()

    def step(counts):
        pyro.set_rng_seed(1)
        vae.zero_grad()
        loss = Trace_ELBO(**options(3)).loss_and_grads(vae.model, vae.guide, dense._replace(counts=counts))
        return torch.tensor(loss), [parameter.grad.clone() for parameter in vae.parameters()]

    found, expected = step(knowing(dense.counts)), step(dense.counts)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert all(gradient.any() for gradient in found[1])


IN_PLACE = {
    "an entry": lambda counts: counts.__setitem__((0, 1), 5.0),
    "a row": lambda counts: counts[1].fill_(4.0),
    "a view": lambda counts: counts.view(-1)[2:4].zero_(),
    "the sum": lambda counts: counts.add_(1),
    "all to zero": lambda counts: counts.zero_(),
    "a copy": lambda counts: counts.copy_(mixed(seed=7)),
    "detached": lambda counts: counts.detach().mul_(2),
}


@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
@families
def test_counts_changed_in_place_forget_their_zeros(family, change):
    counts, expected = knowing(mixed()), mixed()
    change(counts)
    change(expected)
    assert nonzeros_of(counts) is None
    assert nonzeros_of(counts.to(torch.float32)) is None
    arguments = draws(CELLS, GENES), draws(GENES, seed=1), draws(GENES, seed=2)
    assert torch.equal(counts, expected)
    torch.testing.assert_close(evaluated(family, counts, arguments), evaluated(family, expected, arguments))


def test_counts_changed_under_them_forget_their_zeros():
    dense = mixed()
    counts = CountTensor.of(dense, Nonzeros.of(sp.csr_matrix(dense.numpy())))
    assert counts.nonzeros is not None
    dense[0, 0] += 3
    assert counts.nonzeros is None


OPERATIONS = {
    "sum": lambda counts: counts + 1,
    "product": lambda counts: counts * 2,
    "function": torch.log1p,
    "comparison": lambda counts: counts == 0,
    "total": lambda counts: counts.sum(),
    "row": lambda counts: counts[1],
    "rows": lambda counts: counts[[2, 0]],
    "slice": lambda counts: counts[1:4],
    "mask": lambda counts: counts[counts > 0],
    "transpose": lambda counts: counts.T,
    "view": lambda counts: counts.view(-1),
    "particles": lambda counts: counts.expand(2, -1, -1),
    "clone": torch.clone,
    "detach": torch.detach,
    "data": lambda counts: counts.data,
    "double": lambda counts: counts.float().double(),
    "stack": lambda counts: torch.stack([counts, counts]),
    "cat": lambda counts: torch.cat([counts, counts]),
    "where": lambda counts: torch.where(counts > 0, counts, -1.0),
    "unbind": lambda counts: counts.unbind(1)[0],
    "like": torch.zeros_like,
    "linear": lambda counts: torch.nn.functional.linear(counts, mixed()),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_is_computed_from_them_is_an_ordinary_tensor(operation):
    result = operation(knowing(mixed()))
    assert type(result) is Tensor
    assert torch.equal(result, operation(mixed()))


AGAIN = {
    "copy": copy.copy,
    "pickle": lambda counts: pickle.loads(pickle.dumps(counts)),
    "clone": torch.clone,
    "contiguous": torch.Tensor.contiguous,
    "numpy": lambda counts: torch.from_numpy(counts.numpy()),
    "double": lambda counts: counts.to(torch.float32).to(torch.float64),
}


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("changed", [False, True], ids=["as made", "changed"])
def test_counts_made_of_them_are_still_right(again, changed):
    counts, expected = knowing(mixed()), mixed()
    if changed:
        counts[0] = expected[0] = 3
    result = again(counts)
    assert torch.equal(result, expected)
    found = nonzeros_of(result)
    assert found is None or torch.equal(found.dense(), expected)
    arguments = draws(CELLS, GENES), draws(GENES, seed=1), draws(GENES, seed=2)
    torch.testing.assert_close(evaluated(inflated, result, arguments), evaluated(inflated, expected, arguments))


def test_a_row_of_counts_does_not_take_those_of_all():
    counts = knowing(mixed())
    for part in (counts[2], counts[2:3], counts[[1, 1, 4]]):
        log_mean = draws(*part.shape)
        expected = negative_binomial_log_prob(part.clone(), log_mean, draws(GENES))
        assert torch.equal(negative_binomial_log_prob(part, log_mean, draws(GENES)), expected)


MOVES = {
    "type": lambda counts: counts.to(torch.float32),
    "name": lambda counts: counts.to(dtype=torch.float32),
    "device and type": lambda counts: counts.to("cpu", torch.float32),
    "no device": lambda counts: counts.to(None, torch.float32),
    "another": lambda counts: counts.to(torch.zeros(1)),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_another_type_keeps_the_nonzeros(move):
    counts = knowing(mixed())
    moved = move(counts)
    assert moved.dtype == moved.nonzeros.values.dtype == torch.float32
    assert torch.equal(moved, mixed().float())
    assert torch.equal(moved.nonzeros.dense(), mixed().float())
    assert counts.nonzeros.values.dtype == torch.float64
    moved[0, 0] = 8
    assert moved.nonzeros is None
    assert counts.nonzeros is not None


def test_the_same_type_is_the_same_tensor():
    counts = knowing(mixed())
    assert counts.to(torch.float64) is counts
    copied = counts.to(torch.float64, copy=True)
    assert copied is not counts
    assert torch.equal(nonzeros_of(copied).dense(), mixed())


def test_a_minibatch_of_another_type_keeps_the_nonzeros():
    dense = minibatch(torch.float32)
    moved = dense._replace(counts=knowing(dense.counts)).to(dtype=torch.float64)
    assert moved.counts.dtype == moved.library.dtype == torch.float64
    assert torch.equal(moved.counts.nonzeros.dense(), dense.counts.double())
    arguments = draws(CELLS, GENES), draws(GENES, seed=1), draws(GENES, seed=2)
    expected = evaluated(inflated, dense.counts.double(), arguments)
    torch.testing.assert_close(evaluated(inflated, moved.counts, arguments), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_counts_and_means_of_two_types_take_the_wider(dtype):
    counts = knowing(mixed().to(dtype))
    log_prob = plain(draws(CELLS, GENES).float(), draws(GENES), None).log_prob(counts)
    assert log_prob.dtype == torch.float64
    expected = plain(draws(CELLS, GENES).float().double(), draws(GENES), None).log_prob(mixed())
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=0)


def test_they_are_printed_as_the_tensor_that_they_are():
    assert repr(knowing(mixed())) == repr(mixed())
    assert repr(counts_tensor(np.eye(3))) == repr(torch.eye(3, dtype=torch.float64))
