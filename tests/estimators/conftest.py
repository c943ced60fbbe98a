"""Small models whose gradients are known exactly, in many independent copies, and checks of drawn gradients."""

import contextlib
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import softplus

LOG_2_PI = math.log(2 * math.pi)


class Conjugate(nn.Module):
    """p(z) = N(0, 1), p(x | z) = N(z, 1), x = 2; guide N(loc, scale); many independent copies in a plate.

    Each copy has parameters of its own, so that one gradient of the whole holds an independent draw for each.
    """

    max_plate_nesting = 1

    def __init__(self, loc, scale, num_copies=1):
        super().__init__()
        ones = torch.ones(num_copies, dtype=torch.float64)
        self.loc = nn.Parameter(loc * ones)
        self.log_scale = nn.Parameter(math.log(scale) * ones)

    def model(self):
        zero = torch.zeros((), dtype=torch.float64)
        with pyro.plate("copies", len(self.loc), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=zero + 2.0)

    def forward(self):
        pyro.module("guide", self)
        with pyro.plate("copies", len(self.loc), dim=-1):
            return pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


@pytest.fixture
def conjugate():
    return Conjugate


class World(nn.Module):
    """A model of x = 2 and its guide, in independent copies with parameters of their own.

    Args:
        num_copies: Number of copies; one gradient holds an independent draw for each.
        beta: Weight of the KL.
        factor: How many cells of the data set each cell of the minibatch stands for.
        shared: Number of latents that are shared by the cells of a copy, outside their plate.
        width: Number of elements of each latent and of x; None for scalars.
        at_sites: Name of the rule given at each named site.
        betas: Weights of the KL of sites that have their own.
    """

    VALUE = 2.0
    CELLS = 2  # in each copy, where the first latent is shared

    def __init__(self, num_copies=1, *, beta=1.0, factor=1, shared=0, width=None, at_sites=None, betas=None):
        super().__init__()
        self.num_copies, self.beta, self.factor, self.shared = num_copies, beta, factor, shared
        self.width = width
        self.at_sites, self.betas = at_sites or {}, betas or {}
        self.rows = torch.full((num_copies, 1), self.VALUE, dtype=torch.float64)

    def parameter(self, values):
        start = torch.tensor(values, dtype=torch.float64)
        shape = (self.num_copies,) if self.width is None else (self.num_copies, self.width)
        return nn.Parameter(start.expand(*shape, *start.shape).clone())

    def placed(self, values):
        """Values of the copies, with a dimension for the cells of a copy where there is one."""
        return values.unsqueeze(1) if self.shared else values

    def event(self, distribution):
        """With the elements of a latent, where it has several, as one event."""
        return distribution if self.width is None else distribution.to_event(1)

    def plates(self):
        """The plates of a shared latent and of the others."""
        if not self.shared:
            index = torch.arange(self.num_copies)
            cells = pyro.plate("cells", self.factor * self.num_copies, subsample=index, dim=-1)
            return [cells], [cells]
        copies = pyro.plate("copies", self.num_copies, dim=-2)
        cells = pyro.plate("cells", self.factor * self.CELLS, subsample=torch.arange(self.CELLS), dim=-1)
        return [copies], [copies, cells]

    def latent(self, name, distribution, plates):
        infer = {"estimator": self.at_sites[name]} if name in self.at_sites else {}
        with contextlib.ExitStack() as stack:
            for plate in plates:
                stack.enter_context(plate)
            stack.enter_context(poutine.scale(scale=self.betas.get(name, self.beta)))
            return pyro.sample(name, distribution, infer=infer)

    def observe(self, mean, plates):
        with contextlib.ExitStack() as stack:
            for plate in plates:
                stack.enter_context(plate)
            value = torch.full(() if self.width is None else (self.width,), self.VALUE, dtype=torch.float64)
            pyro.sample("x", self.event(dist.Normal(mean, 1.0)), obs=value)

    @property
    def inner_weight(self):
        """How often the terms of the cells count in the bound of a copy."""
        return self.factor * (self.CELLS if self.shared else 1)


def normal_log_prob(value, mean, scale=1.0):
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((value - mean) / scale) ** 2 - scale.log() - 0.5 * LOG_2_PI


class LinearGaussian(World):
    """Normal latents that depend linearly on those before them, in the model and in the guide; x depends on all.

    Args:
        num_latents: At most three.
        independent: Whether the latents are so in the guide.
        options: Those of `World`.
    """

    max_plate_nesting = 2
    PRIOR = ((0.0, 0.0, 0.0), (0.8, 0.0, 0.0), (0.3, 0.7, 0.0))
    DECODER = ((1.0,), (0.4, 1.0), (0.3, -0.4, 1.0))  # by the number of latents

    def __init__(self, num_copies=1, *, num_latents=1, independent=False, **options):
        super().__init__(num_copies, **options)
        self.num_latents, self.independent = num_latents, independent
        slopes = [[0.0, 0.0, 0.0], [-0.4, 0.0, 0.0], [-0.3, 0.5, 0.0]]
        self.loc = self.parameter([0.3, 0.4, 0.2][:num_latents])
        self.slope = self.parameter([row[:num_latents] for row in slopes[:num_latents]])
        self.log_scale = self.parameter([-0.2, -0.4, -0.3][:num_latents])
        self.mean = self.parameter([0.1, -0.2, 0.2][:num_latents])
        self.offset = self.parameter(0.1)

    def _run(self, locs, slopes, scales):
        outer, inner = self.plates()
        values = []
        for site in range(self.num_latents):
            mean = self.placed(locs[..., site])
            for other, value in enumerate(values if slopes is not None else []):
                mean = mean + self.placed(slopes[..., site, other]) * value
            distribution = self.event(dist.Normal(mean, self.placed(scales[..., site])))
            values.append(self.latent(f"z{site}", distribution, outer if site < self.shared else inner))
        return values, inner

    def model(self, rows):
        pyro.module("world", self)
        prior = torch.tensor(self.PRIOR, dtype=torch.float64).expand(*self.mean.shape[:-1], 3, 3)
        values, plates = self._run(self.mean, prior, torch.ones_like(self.mean))
        weights = self.DECODER[self.num_latents - 1]
        mean = sum(weight * value for weight, value in zip(weights, values, strict=True))
        self.observe(mean + self.placed(self.offset), plates)

    model.max_plate_nesting = 2

    def forward(self, rows):
        pyro.module("world", self)
        self._run(self.loc, None if self.independent else self.slope, self.log_scale.exp())

    def negative_elbo(self):
        """By the moments of the latents."""
        slope = self.slope.tril(-1) * (not self.independent)
        spread = torch.linalg.inv(torch.eye(self.num_latents, dtype=torch.float64) - slope)
        mean = (spread @ self.loc.unsqueeze(-1)).squeeze(-1)
        covariance = spread @ torch.diag_embed((2 * self.log_scale).exp()) @ spread.mT
        decoder = torch.tensor(self.DECODER[self.num_latents - 1], dtype=torch.float64)
        residual = self.VALUE - self.offset - mean @ decoder
        elbo = -0.5 * self.inner_weight * (residual**2 + decoder @ covariance @ decoder + LOG_2_PI)
        for site in range(self.num_latents):
            prior = torch.tensor(self.PRIOR[site][: self.num_latents], dtype=torch.float64)
            row = torch.eye(self.num_latents, dtype=torch.float64)[site] - prior
            second = (mean @ row - self.mean[..., site]) ** 2 + row @ covariance @ row
            kl = -self.log_scale[..., site] - 0.5 + 0.5 * second
            elbo = elbo - self.betas.get(f"z{site}", self.beta) * kl * (1 if site < self.shared else self.inner_weight)
        return -elbo.reshape(self.num_copies, -1).sum(-1)

    def log_weights(self, num_particles):
        """Log weights of reparameterised draws, by explicit densities, shape [particles, copies]."""
        noise = torch.randn(num_particles, *self.loc.shape, dtype=torch.float64)
        values, ratio = [], 0.0
        for site in range(self.num_latents):
            mean = self.loc[..., site]
            if not self.independent:
                mean = mean + sum(self.slope[..., site, other] * values[other] for other in range(site))
            prior = self.mean[..., site] + sum(self.PRIOR[site][other] * values[other] for other in range(site))
            scale = self.log_scale[..., site].exp()
            values.append(mean + scale * noise[..., site])
            beta = self.betas.get(f"z{site}", self.beta)
            log_ratio = normal_log_prob(values[site], prior) - normal_log_prob(values[site], mean, scale)
            ratio = ratio + beta * log_ratio
        weights = self.DECODER[self.num_latents - 1]
        mean = self.offset + sum(weight * value for weight, value in zip(weights, values, strict=True))
        number = self.CELLS if self.shared else 1
        total = number * normal_log_prob(self.VALUE, mean) + ratio
        return total.reshape(num_particles, self.num_copies, -1).sum(-1)


class Discrete(World):
    """Base of the worlds with a discrete latent, whose expected costs given its value are a smooth function of it.

    `costs` takes values that are vertices or between them; ``log p`` and ``log q`` are linear in the value, which is
    exact at the vertices.
    """

    def negative_elbo(self):
        """By listing the values."""
        return -sum(self.probability(value) * self.bound(value) for value in self.values())

    def importance_weighted(self, num_particles):
        """The negative bound of several importance weights, by listing the values of all particles at once."""
        values = self.values()
        chances = torch.stack([self.probability(value) for value in values])
        log_weights = torch.stack([self.bound(value) for value in values])
        total = 0.0
        for numbers in _counts(num_particles, len(values)):
            ways = math.factorial(num_particles) / math.prod(math.factorial(number) for number in numbers)
            counts = torch.tensor(numbers, dtype=torch.float64)[:, None]
            mean = (counts.clamp(min=1e-300).log() + log_weights).logsumexp(0) - math.log(num_particles)
            total = total + ways * (chances**counts).prod(0) * mean
        return -total


def _counts(total, kinds):
    if kinds == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for others in _counts(total - first, kinds - 1):
            yield (first, *others)


class Label(Discrete):
    """A one-hot label with a mean of x for each value.

    Args:
        num_classes: Number of values.
        below: Whether a normal latent stands between the label and x.
        options: Those of `World`; a latent that is shared is a normal one beside the label.
    """

    max_plate_nesting = 2

    def __init__(self, num_copies=1, *, num_classes=3, below=False, **options):
        super().__init__(num_copies, **options)
        self.num_classes, self.below = num_classes, below
        self.logits = self.parameter([0.3, -0.4, 0.5, 0.0][:num_classes])
        self.prior_logits = self.parameter([0.1, 0.2, -0.2, 0.3][:num_classes])
        self.mean = self.parameter([-0.5, 0.5, 1.5, 2.5][:num_classes])
        if below:
            self.loc = self.parameter([0.4, 0.7, 1.2, 1.9][:num_classes])
            self.log_scale = self.parameter(-0.4)
        if self.shared:
            self.shared_loc = self.parameter(0.4)
            self.shared_log_scale = self.parameter(-0.3)

    def model(self, rows):
        pyro.module("world", self)
        outer, inner = self.plates()
        zero = torch.zeros((), dtype=torch.float64)
        extra = self.latent("shared", dist.Normal(zero, 1.0), outer) if self.shared else 0.0
        label = self.latent("label", dist.OneHotCategorical(logits=self.placed(self.prior_logits)), inner)
        mean = (label * self.placed(self.mean)).sum(-1) + extra
        if self.below:
            mean = self.latent("z", dist.Normal(mean, 1.0), inner)
        self.observe(mean, inner)

    model.max_plate_nesting = 2

    def forward(self, rows):
        pyro.module("world", self)
        outer, inner = self.plates()
        if self.shared:
            shared = dist.Normal(self.placed(self.shared_loc), self.placed(self.shared_log_scale).exp())
            self.latent("shared", shared, outer)
        label = self.latent("label", dist.OneHotCategorical(logits=self.placed(self.logits)), inner)
        if self.below:
            loc = (label * self.placed(self.loc)).sum(-1)
            self.latent("z", dist.Normal(loc, self.placed(self.log_scale).exp()), inner)

    def values(self):
        return list(torch.eye(self.num_classes, dtype=torch.float64))

    def probability(self, value):
        return (self.logits.softmax(-1) * value).sum(-1)

    def bound(self, value):
        """Expected log weight given the label."""
        log_ratio = (value * (self.prior_logits.log_softmax(-1) - self.logits.log_softmax(-1))).sum(-1)
        mean = (value * self.mean).sum(-1)
        if self.below:
            loc = (value * self.loc).sum(-1)
            spread = (2 * self.log_scale).exp()
            log_ratio = log_ratio + self.log_scale + 0.5 - 0.5 * ((loc - mean) ** 2 + spread)
            return normal_log_prob(self.VALUE, loc) - 0.5 * spread + self.beta * log_ratio
        if self.shared:
            spread = (2 * self.shared_log_scale).exp()
            kl = -self.shared_log_scale - 0.5 + 0.5 * (self.shared_loc**2 + spread)
            likelihood = normal_log_prob(self.VALUE, mean + self.shared_loc) - 0.5 * spread
            return self.inner_weight * (likelihood + self.beta * log_ratio) - self.beta * kl
        return self.factor * (normal_log_prob(self.VALUE, mean) + self.beta * log_ratio)

    def relaxed(self, temperature, hard):
        """What a relaxed estimator differentiates, one draw of the noise for each copy."""
        uniform = torch.rand(self.num_copies, self.num_classes, dtype=torch.float64)
        soft = ((self.logits - (-uniform.log()).log()) / temperature).softmax(-1)
        vertex = torch.nn.functional.one_hot(soft.argmax(-1), self.num_classes)
        return -self.bound(vertex + soft - soft.detach() if hard else soft)


class Bits(Discrete):
    """A vector of two bits, whose mean of x has an interaction.

    Args:
        above: Whether the logits of the bits depend on another bit, in the model and in the guide.
        options: Those of `World`; a latent that is shared is a bit beside them.
    """

    max_plate_nesting = 2

    def __init__(self, num_copies=1, *, above=False, **options):
        super().__init__(num_copies, **options)
        self.above = above
        self.logits = self.parameter([0.4, -0.3])
        self.prior_logits = self.parameter([-0.2, 0.1])
        self.mean = self.parameter([0.7, -0.4])
        self.interaction = self.parameter(1.2)
        if above or self.shared:
            self.top_logit = self.parameter(0.2)
            self.top_mean = self.parameter(0.5)

    def _mean(self, bits, top):
        linear = (bits * self.placed(self.mean)).sum(-1)
        return linear + bits[..., 0] * bits[..., 1] * self.placed(self.interaction) + top

    def model(self, rows):
        pyro.module("world", self)
        outer, inner = self.plates()
        top, shift = 0.0, 0.0
        if self.above or self.shared:
            bit = self.latent("top", dist.Bernoulli(logits=torch.zeros((), dtype=torch.float64)), outer)
            top, shift = bit * self.placed(self.top_mean), bit.unsqueeze(-1) if self.above else 0.0
        prior = dist.Bernoulli(logits=self.placed(self.prior_logits) + shift).to_event(1)
        bits = self.latent("bits", prior, inner)
        self.observe(self._mean(bits, top), inner)

    model.max_plate_nesting = 2

    def forward(self, rows):
        pyro.module("world", self)
        outer, inner = self.plates()
        shift = 0.0
        if self.above or self.shared:
            bit = self.latent("top", dist.Bernoulli(logits=self.placed(self.top_logit)), outer)
            shift = 1.5 * bit.unsqueeze(-1) if self.above else 0.0
        self.latent("bits", dist.Bernoulli(logits=self.placed(self.logits) + shift).to_event(1), inner)

    def values(self):
        tops = (0.0, 1.0) if self.above or self.shared else (0.0,)
        return [torch.tensor(value, dtype=torch.float64) for value in itertools.product((0.0, 1.0), (0.0, 1.0), tops)]

    def probability(self, value):
        log_chance = _bits_log_prob(self._logits(value[..., 2:]), value[..., :2])
        if self.above or self.shared:
            log_chance = log_chance + _bit_log_prob(self.top_logit, value[..., 2])
        return log_chance.exp()

    def _logits(self, top):
        return self.logits + (1.5 * top if self.above else 0.0)

    def bound(self, value):
        """Log weight of the bits, the last of which is the one above them or shared."""
        bits, top = value[..., :2], value[..., 2]
        prior = self.prior_logits + (value[..., 2:] if self.above else 0.0)
        log_ratio = _bits_log_prob(prior, bits) - _bits_log_prob(self._logits(value[..., 2:]), bits)
        mean = (bits * self.mean).sum(-1) + bits[..., 0] * bits[..., 1] * self.interaction
        if not (self.above or self.shared):
            return self.factor * (normal_log_prob(self.VALUE, mean) + self.beta * log_ratio)
        top_ratio = _bit_log_prob(torch.zeros_like(self.top_logit), top) - _bit_log_prob(self.top_logit, top)
        likelihood = normal_log_prob(self.VALUE, mean + top * self.top_mean)
        inner = self.inner_weight * (likelihood + self.beta * log_ratio)
        return inner + self.beta * top_ratio * (1 if self.shared else self.inner_weight)

    def relaxed(self, temperature, hard):
        """What a relaxed estimator differentiates, one draw of the noise for each copy.

        A bit at the top that has a rule of its own is not relaxed but summed over.
        """
        noise = torch.rand(self.num_copies, 3, dtype=torch.float64).logit()

        def given(top):
            soft = _relaxed_bits(self._logits(top) + noise[:, :2], temperature, hard)
            return -self.bound(torch.cat([soft, top], -1))

        zeros = torch.zeros_like(noise[:, 2:])
        if not (self.above or self.shared):
            return given(zeros)
        if "top" in self.at_sites:
            chance = self.top_logit.sigmoid()
            return chance * given(zeros + 1) + (1 - chance) * given(zeros)
        return given(_relaxed_bits(self.top_logit.unsqueeze(-1) + noise[:, 2:], temperature, hard))


def _bit_log_prob(logit, bit):
    return bit * logit - softplus(logit)


def _relaxed_bits(noisy_logits, temperature, hard):
    soft = (noisy_logits / temperature).sigmoid()
    return (noisy_logits > 0).double() + soft - soft.detach() if hard else soft


def _bits_log_prob(logits, bits):
    return _bit_log_prob(logits, bits).sum(-1)


@pytest.fixture(scope="session")
def linear_gaussian():
    return LinearGaussian


@pytest.fixture(scope="session")
def label():
    return Label


@pytest.fixture(scope="session")
def bits():
    return Bits


def derivatives(loss, world):
    """The gradient of a loss, one row for each copy of a world."""
    parameters = list(world.parameters())
    gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.reshape(world.num_copies, -1) for gradient in gradients], 1)


def draw_gradients(world, estimator, seed=0, warm=3):
    """Independent draws of the gradient of the loss, one row for each copy of a world.

    A baseline has first learned from other draws.
    """
    model, guide, elbo = estimator.bind(world.model, world)
    torch.manual_seed(seed)
    with pyro.get_param_store().scope():
        learned = [] if elbo.baseline is None else list(elbo.baseline.double().parameters())
        optimizer = torch.optim.Adam(learned, lr=0.01) if learned else None
        for _ in range(warm if elbo.baseline is not None else 0):
            loss = elbo.differentiable_loss(model, guide, world.rows)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward(inputs=learned)
                optimizer.step()
        return derivatives(elbo.differentiable_loss(model, guide, world.rows), world)


def check_mean(draws, expected, error=0.0):
    """Whether a mean of draws is the expected one: within five standard errors, equal where nothing varies.

    Args:
        draws: Independent draws, one a row.
        expected: What their mean should be.
        error: Standard errors of what is expected, where that was drawn too.
    """
    standard = (draws.var(0) / len(draws) + torch.as_tensor(error) ** 2).sqrt()
    noisy = standard > 1e-9
    difference = (draws.mean(0) - expected).abs()
    assert (difference[noisy] < 5 * standard[noisy]).all(), (difference / standard).tolist()
    torch.testing.assert_close(draws.mean(0)[~noisy], expected[~noisy])


@pytest.fixture(scope="session")
def draws_of():
    return draw_gradients


@pytest.fixture(scope="session")
def derivatives_of():
    return derivatives


@pytest.fixture(scope="session")
def check():
    return check_mean
