"""The variational autoencoder as one Pyro model and guide, and its named declarations.

    x_n ~ likelihood(decoder(z_n, c_n), library_n),    z_n ~ prior(c_n),    for the cells n of a plate,

with the guide ``q(z_n) = encoder(x_n, c_n)``; where there is a latent above z, prior and encoder depend on it, too.
The model and the guide are callables for Pyro and modules for torch.

References:
    Kingma, Welling (2014). Auto-encoding variational Bayes. doi:10.48550/arXiv.1312.6114
    Lopez, Regier, Cole, Jordan, Yosef (2018). Deep generative modeling for single-cell transcriptomics.
    doi:10.1038/s41592-018-0229-2
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyro
import torch
from torch import Tensor, nn

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import Registration
from genailab_pyro.model.encoders import Encoder, LatentLibrary, NormalEncoder, mean_of
from genailab_pyro.model.heads import Head
from genailab_pyro.model.likelihoods import (
    INVERSE_DISPERSIONS,
    GaussianLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from genailab_pyro.model.priors import Prior, StandardNormal
from genailab_pyro.model.programs import Guide, Model
from genailab_pyro.model.upper import Upper
from genailab_pyro.nn import MLP, ConditionEncoding, Declared, Embedding, OneHot, Unconditioned, beside, choose
from genailab_pyro.types import Latent, Minibatch

_numbers = itertools.count()


class VAE(Declared):
    """Prior, decoder, likelihood and encoder as one Pyro model/guide pair.

    Attributes:
        model: The generative program: sites ``"library"`` (where latent), that of the upper latent (where there is
            one), ``"z"``, those of the heads and ``"x"`` in the plate ``"cells"``. Called with a `Minibatch`; where its
            counts are None, ``"x"`` is drawn.
        guide: The variational program: the same sites without ``"x"``, in the same order.

    Args:
        prior: ``prior(condition)``, a distribution of event shape ``[latent]``; below an upper latent it is given the
            condition and the upper latent side by side.
        decoder: ``decoder(z, condition)``, features of shape ``[*particles, cells, features]``.
        likelihood: ``likelihood(features, minibatch)``, a distribution of event shape ``[genes]``.
        encoder: ``encoder(minibatch)``, a distribution of event shape ``[latent]``.
        condition: Encoding of the conditions that prior and decoder see; None for no conditions.
        library: Prior and posterior of a latent library; None for the observed one.
        upper: A latent above z; None for none.
        heads: What else is observed of a cell given its latents, such as its label.

    Raises:
        TypeError: If a part is not a torch module.
        ValueError: If the decoder expects a condition of another width, or a latent library is declared beside a
            likelihood that is not over counts.

    Example:
        >>> vae = VAE(
        ...     prior=StandardNormal(2),
        ...     decoder=MLP(2, [8]),
        ...     likelihood=NegativeBinomialLikelihood(8, 5),
        ...     encoder=NormalEncoder(5, 2, [8]),
        ... )
        >>> zeros = torch.zeros(3, 0)
        >>> vae.model(Minibatch(None, zeros.long(), zeros, torch.full((3,), 100.0), torch.arange(3), 3)).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        prior: Prior,
        decoder: nn.Module,
        likelihood: Likelihood,
        encoder: Encoder,
        *,
        condition: ConditionEncoding | None = None,
        library: LatentLibrary | None = None,
        upper: Upper | None = None,
        heads: Sequence[Head] = (),
    ) -> None:
        super().__init__()
        parts = {"prior": prior, "decoder": decoder, "likelihood": likelihood, "encoder": encoder}
        for name, part in parts.items():
            if not isinstance(part, nn.Module):
                raise TypeError(f"expected {name} to be a torch module, got {type(part).__name__}")
        self.condition = Unconditioned() if condition is None else condition
        if not isinstance(self.condition, ConditionEncoding):
            raise TypeError(f"expected a condition such as OneHot([2]) for two levels, got {condition!r}")
        expected = getattr(decoder, "condition_dim", self.condition.output_dim)
        if expected != self.condition.output_dim:
            raise ValueError(
                f"expected a condition of width {expected}, as the decoder was declared with, got one of width "
                f"{self.condition.output_dim}; declare both with the same condition"
            )
        if library is not None and likelihood.scale != "counts":
            raise ValueError(
                f"expected a likelihood over counts beside a latent library, got {type(likelihood).__name__} over "
                f"{likelihood.scale}, which are normalised by the observed one; leave the library out"
            )
        if getattr(encoder, "reads_upper", False) != (upper is not None):
            reads, fix = "does not read", "declare it without upper_dim, or pass upper=..."
            if upper is not None:
                reads = "reads"
                fix = f"declare it with upper_dim={upper.output_dim} (or reads_upper = True in its class)"
            raise ValueError(f"expected an encoder that {reads} an upper latent, got {type(encoder).__name__}; {fix}")
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.encoder = encoder
        self.library = library
        self.upper = upper
        self._check_sites(upper, heads)
        self.heads = nn.ModuleList(heads)
        self._rename()

    @staticmethod
    def _check_sites(upper: Upper | None, heads: Sequence[Head]) -> None:
        if not isinstance(heads, Sequence):
            raise TypeError(f"expected a list of heads, got {type(heads).__name__}; write heads=[...]")
        sites = ["z", "x", "library", "cells", *(head.site for head in heads)]
        if upper is not None:
            if getattr(upper, "site", None) is None:
                raise TypeError(
                    f'expected {type(upper).__name__} to name its site, got no name; write site = "..." in the class'
                )
            sites.append(upper.site)
        taken = sorted({site for site in sites if sites.count(site) > 1})
        if taken:
            raise ValueError(
                f"expected heads and an upper latent at sites of their own, got {', '.join(map(repr, taken))} twice "
                "('z', 'x', 'library' and 'cells' are the VAE's); name another site, or leave one out"
            )

    def _rename(self) -> None:
        # Pyro's store trains only the first of two modules registered under one name.
        self.name = f"{type(self).__name__.lower()}_{next(_numbers)}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rename()

    @property
    def model(self) -> Model:
        """The generative program, a module with the parameters of this VAE."""
        return Model(self)

    @property
    def guide(self) -> Guide:
        """The variational program, a module with the parameters of this VAE."""
        return Guide(self)

    def register_parts(self, *names: str) -> None:
        """Show the parameters of some parts to Pyro, under this instance's own name."""
        for name in names:
            part = getattr(self, name)
            if part is not None:
                pyro.module(f"{self.name}.{name}", part)

    def initialise(self, minibatch: Minibatch) -> None:
        """Move the parameters of likelihood, prior and upper latent near the data, from a sample of cells."""
        self.likelihood.initialise(minibatch)
        self.prior.initialise(minibatch)
        if self.upper is not None:
            self.upper.initialise(minibatch)

    def decode(self, z: Tensor, minibatch: Minibatch) -> Tensor:
        """Features of a latent under the conditions of a minibatch, shape ``[*particles, cells, features]``."""
        return self.decoder(z, self.condition(minibatch))

    def posterior_mean(self, minibatch: Minibatch) -> Latent:
        """Mean of the approximate posterior of z, shape ``[cells, latent]``.

        Below an upper latent it is that at the upper latent's mean, which is the same where the location of z depends
        on it linearly.
        """
        return mean_of(self.encoder(minibatch, *self._upper_mean(minibatch)))

    def posterior_deviation(self, minibatch: Minibatch) -> Latent:
        """Mean of the approximate posterior of z less that of a prior that depends on an upper latent.

        Returns:
            Shape ``[cells, latent]``; without an upper latent, the mean of the posterior.
        """
        upper = self._upper_mean(minibatch)
        mean = mean_of(self.encoder(minibatch, *upper))
        return mean - mean_of(self.prior(beside(self.condition(minibatch), *upper))) if upper else mean

    def _upper_mean(self, minibatch: Minibatch) -> tuple[Tensor, ...]:
        return () if self.upper is None else (mean_of(self.upper.posterior(minibatch)),)

    def posterior_draws(self, minibatch: Minibatch, num_draws: int) -> Latent:
        """Draws of z from the approximate posterior, shape ``[draws, cells, latent]``."""
        shape = torch.Size([num_draws])
        if self.upper is None:
            return self.encoder(minibatch)(shape)
        return self.encoder(minibatch, self.upper.posterior(minibatch)(shape))()


class _Conditional(VAE):
    """A VAE declared by its widths: one MLP each way, standard normal prior, normal encoder.

    Args:
        input_dim: Number of genes.
        latent_dim: Number of latents.
        condition_dim: Number of levels of the one categorical condition (0 for none), or an encoding of several.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
        inverse_dispersion: ``"gene"``, ``"gene-condition"`` or ``"gene-cell"``; None for ``"gene"``, or for a
            likelihood that has none.
        library: A latent library; None for the observed one.
        size_factor: Whether the library of a minibatch is a size factor.
        heads: What else is observed of a cell given its latents.
        structure: What `latents` takes beside the widths.
    """

    likelihood_class: ClassVar[Callable[..., Likelihood]]
    default_inverse_dispersion: ClassVar[str | None] = "gene"

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        condition_dim: int | ConditionEncoding,
        hidden_dims: Sequence[int],
        *,
        dropout: float = 0.1,
        norm: str = "layer",
        inverse_dispersion: str | None = None,
        library: LatentLibrary | None = None,
        size_factor: bool = False,
        heads: Sequence[Head] = (),
        **structure: Any,
    ) -> None:
        if isinstance(condition_dim, ConditionEncoding):
            condition = condition_dim
        else:
            condition = OneHot([condition_dim] if condition_dim else [])
        if library is not None and size_factor:
            raise ValueError("expected a latent library or a size factor, got both; leave one out")
        decoder = MLP(latent_dim, [*hidden_dims][::-1], condition_dim=condition.output_dim, dropout=dropout, norm=norm)
        options: dict[str, Any] = {"size_factor": size_factor}
        form = inverse_dispersion or self.default_inverse_dispersion
        if form is not None:
            if self.default_inverse_dispersion is None:
                raise ValueError(
                    f"expected no inverse_dispersion for {type(self).__name__}, got {form!r}; leave it out"
                )
            theta = choose(INVERSE_DISPERSIONS, form, "inverse_dispersion")
            levels = condition.levels[0] if condition.levels else 0
            options["inverse_dispersion"] = theta(decoder.output_dim, input_dim, levels)
        shared: dict[str, Any] = {"condition": condition, "dropout": dropout, "norm": norm}
        likelihood = type(self).likelihood_class(decoder.output_dim, input_dim, **options)
        latents = self.latents(input_dim, latent_dim, hidden_dims, shared, **structure)
        super().__init__(
            decoder=decoder,
            likelihood=likelihood,
            condition=condition,
            library=library,
            heads=[*latents.pop("heads", ()), *heads],
            **latents,
        )
        self.input_dim = input_dim
        self.latent_dim = latent_dim

    @staticmethod
    def latents(input_dim: int, latent_dim: int, hidden_dims: Sequence[int], shared: dict[str, Any]) -> dict[str, Any]:
        """The prior, the encoder, what is above them, and the heads that they need."""
        return {
            "prior": StandardNormal(latent_dim),
            "encoder": NormalEncoder(input_dim, latent_dim, hidden_dims, **shared),
        }

    @classmethod
    def from_registration(
        cls,
        cells: Cells,
        *,
        latent_dim: int = 10,
        hidden_dims: Sequence[int] = (128,),
        embedding_dim: int | None = None,
        condition: ConditionEncoding | None = None,
        library: str = "observed",
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Declare the VAE with the dimensions of registered cells, and move its output near their mean.

        Args:
            cells: The cells to be fitted. A sample of at most 1,024 sets the output's starting point.
            latent_dim: Number of latents.
            hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
            embedding_dim: Width of a learned vector per condition; None for one-hot conditions.
            condition: An encoding of the conditions of these cells, such as a `PerturbationEncoding`, in their place.
            library: ``"observed"``, or ``"latent"`` with a log-normal prior per level of the first condition.
            seed: Seed of the initial weights; the caller's random state is left as it was.
            options: ``dropout`` (0.3 below 5,000 cells, 0.1 above, unless given), ``norm``,
                ``inverse_dispersion``, and what the class takes beside them.

        Raises:
            TypeError: If something other than `Cells` is given.
            ValueError: If an option does not fit the registration.

        Example:
            >>> import genailab_pyro as glp
            >>> glp.CVAE_NB.from_registration(glp.register(glp.data.pbmc68k())).input_dim
            765
        """
        if not isinstance(cells, Cells):
            raise TypeError(f"expected cells from glp.register(adata), got {type(cells).__name__}")
        registration = cells.registration
        genes = len(registration.genes)
        # Few cells are soon learned by heart: more dropout scores better on validation cells there.
        options.setdefault("dropout", 0.3 if len(cells) < 5000 else 0.1)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if choose({"observed": False, "latent": True}, library, "library"):
                loc, scale = zip(*cls._library_moments(registration), strict=True)
                shared = {key: options[key] for key in ("dropout", "norm") if key in options}
                options["library"] = LatentLibrary(genes, loc, scale, hidden_dims, **shared)
            vae = cls(
                input_dim=genes,
                latent_dim=latent_dim,
                hidden_dims=hidden_dims,
                size_factor=registration.size_factor is not None,
                **cls._condition_of(registration, embedding_dim, condition),
                **options,
            )
            order = np.random.default_rng(seed).permutation(len(cells))
            vae.initialise(cells.take(cls._sample(cells, order)))
        return vae

    @classmethod
    def _sample(cls, cells: Cells, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions of the cells that set the starting point, of all of them in random order."""
        return order[:1024]

    @classmethod
    def _condition_of(
        cls, registration: Registration, embedding_dim: int | None, condition: ConditionEncoding | None
    ) -> dict[str, Any]:
        levels = [len(item.levels) for item in registration.conditions]
        continuous = len(registration.continuous)
        if condition is not None:
            if embedding_dim is not None or [*condition.levels] != levels:
                raise ValueError(
                    f"expected an encoding of conditions with {levels} levels, as the cells have, and no embedding_dim "
                    f"beside it, got one of {[*condition.levels]} and embedding_dim={embedding_dim}"
                )
            return {"condition_dim": condition}
        if embedding_dim is None:
            return {"condition_dim": OneHot(levels, continuous)}
        return {"condition_dim": Embedding(levels, embedding_dim, continuous)}

    @classmethod
    def _library_moments(cls, registration: Registration) -> Sequence[tuple[float, float]]:
        return registration.library.levels or [(registration.library.loc, registration.library.scale)]


class CVAE(_Conditional):
    """Conditional VAE with normal log-normalised values and a learned scale per gene."""

    likelihood_class = GaussianLikelihood
    default_inverse_dispersion = None


class CVAE_NB(_Conditional):
    """Conditional VAE with negative binomial counts.

    Example:
        >>> CVAE_NB(input_dim=2000, latent_dim=10, condition_dim=5, hidden_dims=[512, 256]).decoder.output_dim
        512
    """

    likelihood_class = NegativeBinomialLikelihood


class CVAE_ZINB(_Conditional):
    """Conditional VAE with zero-inflated negative binomial counts."""

    likelihood_class = ZeroInflatedNegativeBinomialLikelihood


class _Unconditional(_Conditional):
    """A VAE of the same parts that sees no conditions.

    Args:
        input_dim: Number of genes.
        latent_dim: Number of latents.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        options: ``dropout``, ``norm``, ``inverse_dispersion``, ``library`` and ``size_factor``.
    """

    def __init__(self, input_dim: int, latent_dim: int, hidden_dims: Sequence[int], **options: Any) -> None:
        super().__init__(input_dim, latent_dim, Unconditioned(), hidden_dims, **options)

    @classmethod
    def _condition_of(
        cls, registration: Registration, embedding_dim: int | None, condition: ConditionEncoding | None
    ) -> dict[str, Any]:
        if condition is not None:
            raise ValueError(f"expected no condition for {cls.__name__}, which is blind to them; leave it out")
        return {}

    @classmethod
    def _library_moments(cls, registration: Registration) -> Sequence[tuple[float, float]]:
        return [(registration.library.loc, registration.library.scale)]


class VAE_Gaussian(_Unconditional):
    """VAE with normal log-normalised values, blind to conditions."""

    likelihood_class = GaussianLikelihood
    default_inverse_dispersion = None


class VAE_NB(_Unconditional):
    """VAE with negative binomial counts, blind to conditions."""

    likelihood_class = NegativeBinomialLikelihood


class VAE_ZINB(_Unconditional):
    """VAE with zero-inflated negative binomial counts, blind to conditions."""

    likelihood_class = ZeroInflatedNegativeBinomialLikelihood
