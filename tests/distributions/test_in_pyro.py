"""The count distributions inside Pyro's programs: provenance, plates, particles and enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.ops.provenance import ProvenanceTensor, get_provenance, track_provenance

from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

COUNTS = torch.tensor([[0.0, 2.0, 7.0], [1.0, 0.0, 0.0], [4.0, 3.0, 0.0], [0.0, 0.0, 30.0]])


def plain(log_mean, log_theta, gate_logits):
    return NegativeBinomial(log_mean, log_theta)


def inflated(log_mean, log_theta, gate_logits):
    return ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=gate_logits)


FAMILIES = pytest.mark.parametrize("family", [plain, inflated])


@pytest.fixture(autouse=True)
def _own_parameter_store():
    with pyro.get_param_store().scope():
        yield


def leaves():
    values = torch.tensor([[0.5, 1.0, -0.5], [-1.0, 0.0, 9.0], [-2.0, 0.0, 1.0]], dtype=torch.float64)
    return [row.clone().requires_grad_() for row in values]


@FAMILIES
def test_provenance_of_every_argument_passes_through_with_values_and_gradients(family):
    arguments, counts = leaves(), COUNTS.double()
    names = [frozenset({name}) for name in ("log_mean", "log_theta", "gate")]
    tracked = [track_provenance(value, name) for value, name in zip(arguments, names, strict=True)]
    log_prob = family(*tracked).log_prob(track_provenance(counts, frozenset({"counts"})))
    expected = family(*arguments).log_prob(counts)
    assert isinstance(log_prob, ProvenanceTensor)
    used = frozenset({"log_mean", "log_theta", "counts"}) | (names[2] if family is inflated else frozenset())
    assert get_provenance(log_prob) == used
    assert torch.equal(log_prob._t, expected)
    used_leaves = arguments if family is inflated else arguments[:2]
    torch.testing.assert_close(
        torch.autograd.grad(log_prob.sum()._t, used_leaves), torch.autograd.grad(expected.sum(), used_leaves)
    )


@pytest.mark.parametrize("position", [0, 1, 2])
def test_provenance_of_one_argument_alone_passes_through(position):
    arguments = leaves()
    arguments[position] = track_provenance(arguments[position], frozenset({"z"}))
    log_prob = inflated(*arguments).log_prob(COUNTS.double())
    assert get_provenance(log_prob) == {"z"}
    assert log_prob._t.grad_fn is not None


class Program:
    """A coin above counts: the coin shifts the log mean; its exact bound is a sum of two terms."""

    def __init__(self, family):
        self.family = family
        self.leaves = leaves()
        self.guide_logits = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def counts(self, coin):
        log_mean, log_theta, gate_logits = self.leaves
        return self.family(log_mean + 0.7 * coin[..., None], log_theta, gate_logits).to_event(1)

    def model(self):
        with pyro.plate("cells", len(COUNTS)):
            coin = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
            pyro.sample("x", self.counts(coin), obs=COUNTS.double())

    def guide(self):
        with pyro.plate("cells", len(COUNTS)):
            pyro.sample("z", dist.Bernoulli(logits=self.guide_logits))

    def parameters(self):
        used = self.leaves if self.family is inflated else self.leaves[:2]
        return [*used, self.guide_logits]

    def joint(self):
        """Log-probabilities of counts and coin, shape [coin, cells]."""
        coin = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, len(COUNTS))
        return self.counts(coin).log_prob(COUNTS.double()) + math.log(0.5)

    def bound(self):
        log_guide = torch.nn.functional.logsigmoid(torch.stack([-self.guide_logits, self.guide_logits]))
        return (log_guide.exp()[:, None] * (self.joint() - log_guide[:, None])).sum()


def flat_gradient(loss, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def graph_gradients(program, repeats=30):
    pyro.set_rng_seed(0)
    elbo = TraceGraph_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    rows = []
    for _ in range(repeats):
        for parameter in program.parameters():
            parameter.grad = None
        elbo.loss_and_grads(program.model, program.guide)
        rows.append(torch.cat([parameter.grad.flatten() for parameter in program.parameters()]))
    return torch.stack(rows)


@FAMILIES
def test_score_gradients_with_provenance_are_those_of_the_exact_bound(family):
    program = Program(family)
    exact = flat_gradient(-program.bound(), program.parameters())
    rows = graph_gradients(program)
    standard_error = rows.std(0) / len(rows) ** 0.5
    assert ((rows.mean(0) - exact).abs() < 5 * standard_error + 1e-9).all()
    planted = Program(family)
    planted.guide_logits = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    wrong = flat_gradient(-planted.bound(), planted.parameters())
    assert ((rows.mean(0) - wrong).abs() > 5 * standard_error).any()


@FAMILIES
def test_enumerated_latent_above_the_counts_gives_the_marginal(family):
    program = Program(family)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    loss = elbo.differentiable_loss(pyro.infer.config_enumerate(program.model), lambda: None)
    marginal = -program.joint().logsumexp(0).sum()
    torch.testing.assert_close(loss, marginal)
    used = program.parameters()[:-1]
    torch.testing.assert_close(flat_gradient(loss, used), flat_gradient(marginal, used))


@FAMILIES
def test_enumerated_guide_under_particles_gives_the_exact_bound(family):
    program = Program(family)
    elbo = TraceEnum_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.differentiable_loss(program.model, pyro.infer.config_enumerate(program.guide))
    torch.testing.assert_close(loss, -program.bound())


@FAMILIES
def test_leading_particle_dimension_and_subsampling_scale_the_counts(family):
    arguments = [value.detach() for value in leaves()]

    def model():
        with pyro.plate("cells", 40, subsample_size=4):
            shift = pyro.sample("z", dist.Normal(0, 1).expand([4]))
            log_mean = arguments[0] + shift[..., None]
            pyro.sample("x", family(log_mean, *arguments[1:]).to_event(1), obs=COUNTS.double())

    with pyro.plate("particles", 6, dim=-2):
        trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["x"]
    assert site["log_prob"].shape == (6, 4)
    log_mean = arguments[0] + trace.nodes["z"]["value"][5, :, None]
    expected = family(log_mean, *arguments[1:]).log_prob(COUNTS.double()).sum(-1)
    torch.testing.assert_close(site["unscaled_log_prob"][5], expected)
    torch.testing.assert_close(site["log_prob"][5], 10 * expected)


@FAMILIES
def test_masked_cells_contribute_neither_value_nor_gradient(family):
    arguments = leaves()
    keep = torch.tensor([True, False, True, True])
    log_mean = arguments[0].expand(4, 3).clone().detach().requires_grad_()

    def model():
        with pyro.plate("cells", 4), poutine.mask(mask=keep):
            pyro.sample("x", family(log_mean, *arguments[1:]).to_event(1), obs=COUNTS.double())

    loss = Trace_ELBO().differentiable_loss(model, lambda: None)
    expected = family(log_mean, *arguments[1:]).log_prob(COUNTS.double())[keep].sum()
    torch.testing.assert_close(loss, -expected)
    (gradient,) = torch.autograd.grad(loss, log_mean)
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).all()


@FAMILIES
def test_predictive_draws_new_counts(family):
    program = Program(family)

    def model():
        coin = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
        pyro.sample("x", program.counts(coin))

    pyro.set_rng_seed(0)
    counts = pyro.infer.Predictive(model, num_samples=7)()["x"]
    assert counts.shape == (7, 3)
    assert (counts == counts.round()).all()
