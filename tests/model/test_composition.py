"""Parts that do not go together are refused, with the reason, before anything is trained."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import genailab_pyro as glp
from genailab_pyro.model.composition import CompositionError, check_composition

GENES, LATENT = 12, 4


@pytest.fixture(scope="module")
def cells():
    return glp.register(glp.data.simulate(40, GENES, num_types=2, seed=0).adata, labels="cell_type")


def vae(**parts):
    fitting = {
        "prior": glp.StandardNormal(LATENT),
        "decoder": glp.MLP(LATENT, [8]),
        "likelihood": glp.NegativeBinomialLikelihood(8, GENES),
        "encoder": glp.NormalEncoder(GENES, LATENT, [8]),
    }
    return glp.VAE(**{**fitting, **parts})


class Rates(glp.Prior):
    """A prior over positive numbers."""

    def forward(self, condition):
        return dist.Gamma(torch.ones(LATENT), 1.0).to_event(1)


class Alone(glp.StandardNormal):
    """A prior without an event."""

    def forward(self, condition):
        return super().forward(condition).base_dist


class Unsupported(glp.StandardNormal):
    """A prior that does not say what it is over."""

    def forward(self, condition):
        class Silent(dist.TorchDistribution):
            def __init__(self):
                super().__init__(event_shape=torch.Size([LATENT]), validate_args=False)

        return Silent()


class Detected(glp.Likelihood):
    """Bits under the name of counts."""

    def __init__(self, distribution="Bernoulli"):
        super().__init__()
        self.logits, self.distribution = torch.nn.Linear(8, GENES), distribution

    def forward(self, features, minibatch):
        logits = self.logits(features)
        if self.distribution == "none":
            return None
        if self.distribution == "softmax(1)":
            return dist.Poisson(logits.softmax(1) * 40).to_event(1)
        if self.distribution == "library":
            return dist.Poisson(logits.softmax(-1) * minibatch.library).to_event(1)
        if self.distribution == "negative rate":
            return dist.Poisson(logits - 10).to_event(1)
        if self.distribution == "Normal":
            return dist.Normal(logits, 1.0).to_event(1)
        return dist.Bernoulli(logits=logits).to_event(1)


class Greedy(torch.nn.Module):
    """A decoder that divides by the largest latent of the cells."""

    output_dim = LATENT

    def forward(self, z, condition):
        return z / z.abs().amax(-2, keepdim=True)


class Centred(glp.NegativeBinomialLikelihood):
    """A likelihood that sees how far a cell is from the others."""

    def forward(self, features, minibatch):
        return super().forward(features - features.mean(-2, keepdim=True), minibatch)


class Unwritten(glp.Likelihood):
    """A likelihood without a forward."""


class TwoLayers(torch.nn.Linear):
    """A decoder that does not take a condition."""


class Kind(glp.Upper):
    """A code in place of a one-hot vector."""

    site, output_dim = "kind", 3

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Linear(GENES, 3)

    def prior(self, condition):
        return dist.Categorical(logits=torch.zeros(3))

    def posterior(self, minibatch):
        return dist.Categorical(logits=self.logits(minibatch.counts.log1p()))


WRONG = {
    "a prior of positive numbers": (
        {"prior": Rates()},
        r"a prior over all that the encoder can draw, Real\(\), got one over GreaterThan.*LogNormal",
    ),
    "a prior without an event": ({"prior": Alone(LATENT)}, r"a prior of 4 latents.*event shape \[\]; add .to_event"),
    "a prior without a support": ({"prior": Unsupported(LATENT)}, "prior to say which values it is over, got Silent"),
    "a likelihood over bits": (
        {"likelihood": Detected()},
        r"support of the likelihood Detected, Boolean\(\), got values from .*override observed\(\)",
    ),
    "a likelihood over numbers": (
        {"likelihood": Detected("Normal")},
        "likelihood Detected to draw counts, got -?[0-9]",
    ),
    "a likelihood of nothing": (
        {"likelihood": Detected("none")},
        r"likelihood Detected to return a Pyro distribution, got NoneType; return one from forward\(\)",
    ),
    "a likelihood that normalises over cells": (
        {"likelihood": Detected("softmax(1)")},
        r"likelihood Detected to answer each draw by itself.*count dimensions from the end \(softmax\(-1\)",
    ),
    "a likelihood with a negative rate": (
        {"likelihood": Detected("negative rate")},
        r"likelihood Detected to give a Poisson whose rate is GreaterThanEq.*got values from -1",
    ),
    "a decoder that looks at the other cells": (
        {"decoder": Greedy(), "likelihood": glp.NegativeBinomialLikelihood(LATENT, GENES)},
        "decoder Greedy to answer each cell by itself",
    ),
    "a likelihood that looks at the other cells": (
        {"likelihood": Centred(8, GENES)},
        "likelihood Centred to answer each cell by itself",
    ),
    "a likelihood with the library beside the cells": (
        {"likelihood": Detected("library")},
        r"likelihood Detected to take features of width 8.*library, beside the genes by .unsqueeze\(-1\)",
    ),
    "a likelihood without a forward": (
        {"likelihood": Unwritten()},
        r"likelihood Unwritten to answer likelihood\(features, minibatch\), got nothing; define forward\(\)",
    ),
    "a decoder that takes no condition": (
        {"decoder": TwoLayers(LATENT, 8)},
        r"decoder TwoLayers to answer decoder\(z, condition\), got: .*3 were given",
    ),
    "an upper latent that nothing depends on": (
        {
            "encoder": glp.NormalEncoder(GENES, LATENT, [8], upper_dim=2),
            "upper": glp.UpperNormal(GENES, 2, [8]),
        },
        r"a prior that depends on the upper latent, got StandardNormal.*use DependentNormal\(2, ...\)",
    ),
    "an upper latent of codes": (
        {
            "prior": glp.DependentNormal(3, LATENT),
            "encoder": glp.NormalEncoder(GENES, LATENT, [8], upper_dim=3),
            "upper": Kind(),
        },
        r"posterior of the upper latent to give .*event shape \[\] for 8 cells; use OneHotCategorical",
    ),
    "an encoder below another upper latent": (
        {
            "prior": glp.DependentNormal(2, LATENT),
            "encoder": glp.NormalEncoder(GENES, LATENT, [8], upper_dim=3),
            "upper": glp.UpperNormal(GENES, 2, [8]),
        },
        r"encoder NormalEncoder to take cells of 12 genes beside an upper latent of width 2 \(upper_dim\)",
    ),
    "a prior of another width": ({"prior": glp.StandardNormal(3)}, r"expected a prior of 4 latents.*event shape \[3\]"),
    "a prior that would be broadcast": ({"prior": glp.StandardNormal(1)}, r"expected a prior of 4 latents"),
    "a prior of bits": ({"prior": glp.Bits(LATENT)}, "a discrete prior and a continuous encoder"),
    "a prior of another condition": (
        {"prior": glp.DependentNormal(2, LATENT)},
        "prior DependentNormal to take a condition of width 0",
    ),
    "an encoder of bits": ({"encoder": glp.BernoulliEncoder(GENES, LATENT)}, "a continuous prior and a discrete enc"),
    "an encoder of other genes": (
        {"encoder": glp.NormalEncoder(11, LATENT)},
        "encoder NormalEncoder to take cells of 12",
    ),
    "a decoder of another latent": ({"decoder": glp.MLP(3, [8])}, "decoder MLP to take 4 latents beside a condition"),
    "a likelihood of other features": (
        {"likelihood": glp.NegativeBinomialLikelihood(7, GENES)},
        "likelihood NegativeBinomialLikelihood to take features of width 8",
    ),
    "a likelihood of other genes": (
        {"likelihood": glp.NegativeBinomialLikelihood(8, 11)},
        r"a likelihood over 12 genes, as the cells have.*event shape \[11\]",
    ),
    "a head of another latent": ({"heads": [glp.LabelHead(3, 2)]}, "head LabelHead to take 4 latents"),
    "an upper latent of another width": (
        {
            "prior": glp.DependentNormal(3, LATENT),
            "encoder": glp.NormalEncoder(GENES, LATENT, [8], upper_dim=2),
            "upper": glp.UpperNormal(GENES, 2, [8]),
        },
        "prior DependentNormal to take a condition of width 2",
    ),
}


@pytest.mark.filterwarnings("ignore:this fit cannot be saved")
@pytest.mark.parametrize(("parts", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_by_name(parts, message, cells):
    with pytest.raises(CompositionError, match=message):
        glp.fit(vae(**parts), cells, max_epochs=1, progress=False)


class Rated(dist.Poisson):
    """A distribution of a user that holds a number beside its tensors."""

    arg_constraints = {**dist.Poisson.arg_constraints, "inflation": dist.constraints.positive}  # noqa: RUF012

    def __init__(self, rate):
        super().__init__(rate, validate_args=False)
        self.inflation = 1.0

    def expand(self, batch_shape, _instance=None):
        return Rated(self.rate.expand(batch_shape))


class RatedLikelihood(Detected):
    """Counts from it."""

    def forward(self, features, minibatch):
        return Rated(self.logits(features).exp()).to_event(1)


RIGHT = {
    "a distribution with a number": lambda: vae(likelihood=RatedLikelihood()),
    "the standard": lambda: vae(),
    "a conditional": lambda: glp.CVAE_ZINB(GENES, LATENT, 0, [8]),
    "bits": lambda: glp.BernoulliVAE(GENES, LATENT, 0, [8]),
    "two layers": lambda: glp.HierarchicalVAE(GENES, LATENT, 0, [8], upper_dim=2),
    "a label": lambda: glp.LabelVAE(GENES, LATENT, 0, [8], num_labels=3),
    "a head": lambda: vae(heads=[glp.LabelHead(LATENT, 2)]),
    "values": lambda: vae(likelihood=glp.GaussianLikelihood(8, GENES)),
}


@pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT)
def test_what_fits_passes_and_leaves_the_random_state(build, cells):
    torch.manual_seed(0)
    fitting, before = build(), torch.get_rng_state()
    check_composition(fitting, cells.take(range(6)))
    assert torch.equal(torch.get_rng_state(), before)


class Plain(glp.Encoder):
    """An encoder that does not say that it reads an upper latent."""

    def forward(self, minibatch, upper=None):
        zero = minibatch.counts.new_zeros(minibatch.size, LATENT)
        return dist.Normal(zero, 1.0).to_event(1)


class Unfinished(glp.NormalEncoder):
    def forward(self, minibatch, upper=None):
        return super().forward(minibatch).base_dist


def test_a_forgotten_event_is_named(cells):
    with pytest.raises(CompositionError, match=r"encoder to give one distribution of event shape \[latent\] per cell"):
        check_composition(vae(encoder=Unfinished(GENES, LATENT, [8])), cells.take(range(6)))


class Depth(glp.Head):
    site = "depth"

    def __init__(self, form="right"):
        super().__init__()
        self.loc, self.form = torch.nn.Linear(LATENT, 1), form

    def forward(self, z, minibatch, upper=None):
        loc = self.loc(z)
        if self.form == "squeezed":
            return dist.Normal(loc.squeeze(), 1.0)
        if self.form == "over cells":
            return dist.Normal(loc.squeeze(-1).softmax(0), 1.0)
        if self.form == "bits":
            return dist.Bernoulli(logits=loc.squeeze(-1))
        if self.form == "broadcast":
            return dist.Normal(loc, 1.0).to_event(1)
        return dist.Normal(loc if self.form == "a column" else loc.squeeze(-1), 1.0)

    def observed(self, minibatch):
        depth = minibatch.library.log()
        if self.form == "unknown":
            depth = torch.where(minibatch.index % 2 == 0, depth, torch.nan)
        if self.form == "nothing":
            return None
        if self.form == "of counts":
            depth = minibatch.counts.sum(-1)
        if self.form == "values alone":
            return depth
        known = ~depth.isnan()
        return depth, known.float() if self.form == "numbers" else known


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("broadcast", r"head Depth to have one distribution for each of .*event shape \[1\]; .*squeeze\(-1\)"),
        ("a column", r"head Depth to have one distribution for each of .*batch shape \[\d+, 1\]"),
        ("numbers", r"which of \d+ cells are known, booleans of shape"),
        ("squeezed", r"one distribution for each of 1 cells, over values of shape \[1\], got batch shape \[\]|draw by"),
        ("over cells", "head Depth to answer each draw by itself"),
        ("bits", r"support of the head Depth, Boolean\(\), got values from"),
        ("nothing", r"cells with observations for the head Depth \('depth'\), got none; register them"),
        ("of counts", "observe nothing where cells have no counts, as when they are drawn.*minibatch.counts is None"),
        ("values alone", r"return two tensors from observed\(\).*got Tensor; return values, known"),
    ],
)
def test_a_head_that_would_mean_something_else_is_refused(form, message, cells):
    with pytest.raises(CompositionError, match=message):
        glp.fit(vae(heads=[Depth(form)]), cells, max_epochs=1, progress=False)


def test_what_is_not_known_of_a_cell_counts_for_nothing(cells):
    minibatch = cells.take(range(len(cells)))
    whole, partly = (vae(heads=[Depth(form)]) for form in ("right", "unknown"))
    partly.load_state_dict(whole.state_dict())
    log_probs = []
    for each in (whole, partly):
        torch.manual_seed(0)
        trace = poutine.trace(each.model).get_trace(minibatch)
        log_probs.append(trace.nodes["depth"]["fn"].log_prob(trace.nodes["depth"]["value"]))
        trace.log_prob_sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in each.parameters())
    known = minibatch.index % 2 == 0
    torch.testing.assert_close(log_probs[1][known], log_probs[0][known])
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["depth"]["log_prob"].sum(), log_probs[0][known].sum())
    assert trace.nodes["depth"]["log_prob"][~known].abs().max() == 0


def test_what_was_made_of_parameters_at_declaration_would_not_train(cells):
    likelihood = glp.NegativeBinomialLikelihood(8, GENES)
    likelihood.scaled = 2 * likelihood.log_expression.weight
    with pytest.raises(ValueError, match=r"got likelihood.scaled, computed from parameters when it was declared"):
        glp.fit(vae(likelihood=likelihood), cells, max_epochs=1, progress=False)


class Nameless(glp.UpperNormal):
    site = None


class Taken(glp.LabelHead):
    site = "z"


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"heads": glp.LabelHead(LATENT, 2)}, TypeError, r"a list of heads, got LabelHead; write heads=\[...\]"),
        ({"heads": [Taken(LATENT, 2)]}, ValueError, "got 'z' twice"),
        ({"condition": "batch"}, TypeError, r"a condition such as OneHot\(\[2\]\) for two levels, got 'batch'"),
        (
            {"upper": Nameless(GENES, 2), "encoder": glp.NormalEncoder(GENES, LATENT, [8], upper_dim=2)},
            TypeError,
            "expected Nameless to name its site",
        ),
        (
            {"upper": glp.UpperNormal(GENES, 2), "encoder": Plain()},
            ValueError,
            r"an encoder that reads an upper latent, got Plain; .*reads_upper = True in its class",
        ),
    ],
)
def test_what_cannot_be_a_vae_is_refused_when_it_is_declared(parts, error, message):
    with pytest.raises(error, match=message):
        vae(**parts)
