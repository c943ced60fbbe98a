"""Which part goes with which estimator and likelihood: each pair is fitted for two epochs of a few simulated counts.

``python -m tests.contracts.matrix`` prints what came of it.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pandas as pd
import torch
from rich import box
from rich.table import Table

import genailab_pyro as glp
from genailab_pyro.estimators import EstimatorError
from genailab_pyro.model.vae import VAE
from genailab_pyro.report.terminal import console, say

GENES, LATENT, FEATURES, CELLS = 8, 2, 6, 36
DROPOUT = {"dropout": 0.0}


def simulated() -> glp.Cells:
    """A few cells of three types, with their labels."""
    adata = glp.data.simulate(CELLS, GENES, num_types=3, seed=0).adata
    return glp.register(adata, labels="cell_type")


def normal_encoder() -> glp.Encoder:
    """The standard guide."""
    return glp.NormalEncoder(GENES, LATENT, [FEATURES], **DROPOUT)


def counts() -> glp.Likelihood:
    """The standard likelihood."""
    return glp.NegativeBinomialLikelihood(FEATURES, GENES)


def decoder() -> glp.MLP:
    """The standard decoder."""
    return glp.MLP(LATENT, [FEATURES], **DROPOUT)


def with_prior(build: Callable[[], glp.Prior]) -> Callable[..., VAE]:
    """A VAE with another prior."""
    return lambda likelihood=counts: VAE(build(), decoder(), likelihood(), normal_encoder())


def with_vamp_prior(likelihood: Callable[[], glp.Likelihood] = counts) -> VAE:
    """A VAE whose prior shares its encoder."""
    encoder = normal_encoder()
    return VAE(glp.VampPrior(encoder, GENES, 3), decoder(), likelihood(), encoder)


def with_encoder(build: Callable[[], glp.Encoder]) -> Callable[..., VAE]:
    """A VAE with another guide."""
    return lambda likelihood=counts: VAE(glp.StandardNormal(LATENT), decoder(), likelihood(), build())


def with_linear_decoder() -> VAE:
    """A VAE whose decoder can be read."""
    likelihood = glp.NegativeBinomialLikelihood(LATENT, GENES)
    return VAE(glp.StandardNormal(LATENT), glp.LinearDecoder(LATENT), likelihood, normal_encoder())


def with_head() -> VAE:
    """A VAE with a classifier beside it."""
    heads = [glp.LabelHead(LATENT, 3)]
    return VAE(glp.StandardNormal(LATENT), decoder(), counts(), normal_encoder(), heads=heads)


def structured(declared: type, **options: int) -> Callable[..., VAE]:
    """A declared VAE of the package."""
    return lambda: declared(GENES, LATENT, 0, [FEATURES], dropout=0.0, **options)


@dataclass(frozen=True)
class Part:
    """One part that is tried, and what it is not offered with.

    Args:
        build: Declares a VAE with it; parts other than likelihoods take one.
        refused: Names of estimators that refuse it.
        latents: ``"continuous"`` or ``"discrete"``.
    """

    build: Callable[..., VAE]
    refused: frozenset[str] = field(default_factory=frozenset)
    latents: str = "continuous"


KL = frozenset({"pathwise-kl", "score-kl"})
PRIORS = {
    "StandardNormal": Part(with_prior(lambda: glp.StandardNormal(LATENT))),
    "MixtureOfNormals": Part(with_prior(lambda: glp.MixtureOfNormals(LATENT, 3)), KL),
    "VampPrior": Part(with_vamp_prior, KL),
    "StudentT": Part(with_prior(lambda: glp.StudentT(LATENT)), KL),
    "FlowPrior": Part(with_prior(lambda: glp.FlowPrior(LATENT, transforms=1, hidden_dims=[8])), KL),
}
ENCODERS = {
    "NormalEncoder": Part(with_encoder(normal_encoder)),
    "FullRankEncoder": Part(with_encoder(lambda: glp.FullRankEncoder(GENES, LATENT, [FEATURES], **DROPOUT))),
    "LowRankEncoder": Part(with_encoder(lambda: glp.LowRankEncoder(GENES, LATENT, [FEATURES], rank=1, **DROPOUT))),
    "FlowEncoder": Part(
        with_encoder(lambda: glp.FlowEncoder(GENES, LATENT, [FEATURES], transforms=1, flow_dims=[8], **DROPOUT)), KL
    ),
}
LIKELIHOODS: dict[str, Callable[[], glp.Likelihood]] = {
    "GaussianLikelihood": lambda: glp.GaussianLikelihood(FEATURES, GENES),
    "NegativeBinomialLikelihood": counts,
    "ZeroInflatedNegativeBinomialLikelihood": lambda: glp.ZeroInflatedNegativeBinomialLikelihood(FEATURES, GENES),
    "PoissonLikelihood": lambda: glp.PoissonLikelihood(FEATURES, GENES),
    "LogNormalPoissonLikelihood": lambda: glp.LogNormalPoissonLikelihood(FEATURES, GENES),
    "BernoulliLikelihood": lambda: glp.BernoulliLikelihood(FEATURES, GENES),
    "MixtureLikelihood": lambda: glp.MixtureLikelihood([counts(), glp.PoissonLikelihood(FEATURES, GENES)], GENES),
}
STRUCTURES = {
    "LinearDecoder": Part(with_linear_decoder),
    "HierarchicalVAE": Part(structured(glp.HierarchicalVAE, upper_dim=2)),
    "LabelVAE": Part(structured(glp.LabelVAE, num_labels=3), frozenset({"disarm"}), "discrete"),
    # Its annotations have a weight, which has no place among importance weights.
    "SemiSupervisedVAE": Part(
        structured(glp.SemiSupervisedVAE, num_labels=3), frozenset({"disarm", "vimco"}), "discrete"
    ),
    "LabelHead": Part(with_head),
    "BernoulliVAE": Part(structured(glp.BernoulliVAE), frozenset({"enum"}), "discrete"),
}
PARTS = {
    **PRIORS,
    **ENCODERS,
    **{name: Part(lambda build=build: with_encoder(normal_encoder)(build)) for name, build in LIKELIHOODS.items()},
    **STRUCTURES,
}


class Broken(AssertionError):
    """A combination that is neither fitted nor refused as it should be."""


def tried(part: Part, cells: glp.Cells, estimator: str) -> str:
    """``"yes"``, or ``"no: "`` with the estimator that the refusal names.

    Raises:
        Broken: If the fit is not finite, or a refusal names no estimator.
    """
    torch.manual_seed(0)
    vae = part.build()
    vae.initialise(cells.take(range(len(cells))))
    try:
        fit = glp.fit(vae, cells, estimator, max_epochs=2, validation_fraction=0.0, progress=False)
    except EstimatorError as error:
        named = re.findall(r"the estimator '([\w-]+)'", str(error))
        if not named:
            raise Broken(f"the refusal names no estimator: {error}") from error
        return f"no: {named[0]}"
    figures = [*fit.history["train_elbo"], *fit.elbo(cells, num_particles=2)]
    if not all(map(math.isfinite, figures)):
        raise Broken(f"not finite: {figures}")
    return "yes"


def combinations() -> Iterator[tuple[str, str]]:
    """Every part with every estimator."""
    return ((part, estimator) for part in PARTS for estimator in glp.estimators.table().index)


def main() -> None:
    """Try everything and print it."""
    cells, found = simulated(), {}
    for part, estimator in combinations():
        found[part, estimator] = tried(PARTS[part], cells, estimator)
    table = pd.Series(found).unstack(sort=False)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("estimator")
    for part in table.index:
        shown.add_column(part)
    for estimator, column in table.items():
        shown.add_row(str(estimator), *column)
    say("What is offered, and the estimator that is named where it is not")
    console().print(shown)


if __name__ == "__main__":
    main()
