"""Terms that are added to the bound in training: ``penalty(minibatch, guide_trace, model_trace)``, in nats per cell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent
from torch.nn.functional import softplus

from genailab_pyro.estimators import closed_form_kl
from genailab_pyro.estimators.rules import innermost, is_normal, kind, unwrapped
from genailab_pyro.model.opponent import Opponent
from genailab_pyro.nn import Declared
from genailab_pyro.types import Latent, Minibatch, PerCell


class Penalty(Protocol):
    """A term added to the negative bound; it needs draws that carry a path to the guide's parameters."""

    def __call__(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Float[Tensor, ""]:
        """The penalty of a minibatch, in nats per cell."""


def kl_per_latent(guide_trace: Trace, model_trace: Trace, site: str = "z") -> Float[Tensor, "*particles cells latent"]:
    """Closed-form KL between guide and prior for each latent of a site with independent latents, in nats.

    Raises:
        NotImplementedError: If this pair of distributions has no closed form, or its latents are not independent.
    """
    guide_fn, model_fn = (_latents(trace.nodes[site]["fn"]) for trace in (guide_trace, model_trace))
    return closed_form_kl(guide_fn, model_fn)


def _latents(fn: Any) -> torch.distributions.Distribution:
    fn = unwrapped(fn)
    if not isinstance(fn, Independent):
        raise NotImplementedError(f"the KL of a {type(fn).__name__} does not split into latents")
    return fn.base_dist


@dataclass(frozen=True)
class FreeBits:
    """No reward for a latent whose mean KL falls below a floor: the sum over latents of max(0, floor - KL).

    Added to the KL itself it gives max(floor, KL) for each latent, with the KL averaged over the minibatch. While a
    warm-up holds the weight of the KL below one, the sum pulls latents below the floor up to it.

    Args:
        floor: In nats per latent.
        site: The latent site.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling (2016). Improved variational inference with inverse
        autoregressive flow. doi:10.48550/arXiv.1606.04934
    """

    floor: float
    site: str = "z"

    def __call__(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Float[Tensor, ""]:
        """The penalty of a minibatch, in nats per cell."""
        try:
            kl = kl_per_latent(guide_trace, model_trace, self.site)
        except NotImplementedError as error:
            pair = " and ".join(kind(trace.nodes[self.site]["fn"]) for trace in (guide_trace, model_trace))
            raise ValueError(
                f"expected a guide and a prior of {self.site!r} whose KL has a closed form for each latent, got "
                f"{pair}; leave the free bits out (free_bits=0)"
            ) from error
        return (self.floor - kl.flatten(0, -2).mean(0)).clamp(min=0).sum()


def aggregate_log_density(
    z: Latent, loc: Latent, scale: Latent, num_cells: int
) -> tuple[PerCell, Float[Tensor, "*particles cells latent"]]:
    r"""Log density of draws under the aggregate posterior, and of each of their latents under its own marginal.

    Of a data set of N cells the aggregate posterior is the mixture :math:`q(z) = \frac1N \sum_n q(z | x_n)`. With M of
    them in the minibatch, the density of the draw of cell i is estimated without bias by

    .. math::
        \hat q(z_i) = \frac1N q(z_i | x_i) + \frac{N - 1}{N (M - 1)} \sum_{j \ne i} q(z_i | x_j),

    which is exact where the minibatch is the data set. Its logarithm is too low on average (Jensen's inequality).

    Args:
        z: One draw per cell from its posterior.
        loc: Means of the posteriors.
        scale: Their standard deviations.
        num_cells: Number N of cells in the data set.

    Returns:
        Log density of each draw, shape ``[*particles, cells]``, and of each of its latents, shape
        ``[*particles, cells, latent]``, in nats.

    Raises:
        ValueError: If there is one cell of many, which tells nothing of the others.

    References:
        Chen, Li, Grosse, Duvenaud (2018). Isolating sources of disentanglement in variational autoencoders.
        doi:10.48550/arXiv.1802.04942 (its stratified sampling, where one cell of the minibatch, by its order, has
        another weight than the rest; here each has the mean of these weights)

    Example:
        >>> loc, scale = torch.zeros(2, 3), torch.ones(2, 3)
        >>> joint, marginals = aggregate_log_density(loc, loc, scale, num_cells=2)
        >>> bool(joint.allclose(marginals.sum(-1)))  # the posteriors are all the same, and their latents independent
        True
    """
    size = z.shape[-2]
    if size < 2 <= num_cells:
        raise ValueError(
            f"expected at least two cells in a minibatch, to compare their posteriors, got {size} of {num_cells}; "
            "raise minibatch_size"
        )
    posteriors = torch.distributions.Normal(loc.unsqueeze(-3), scale.unsqueeze(-3))
    pairs = posteriors.log_prob(z.unsqueeze(-2))  # [*particles, draws, cells, latent]
    other = (num_cells - 1) / (num_cells * max(size - 1, 1))
    log_weights = pairs.new_full((size, size), other).fill_diagonal_(1 / num_cells).log()
    return (pairs.sum(-1) + log_weights).logsumexp(-1), (pairs + log_weights.unsqueeze(-1)).logsumexp(-2)


def total_correlation(z: Latent, loc: Latent, scale: Latent, num_cells: int) -> PerCell:
    r"""Total correlation of the aggregate posterior, estimated by each draw: log q(z) - sum_d log q(z_d), in nats.

    The mean over the cells estimates :math:`TC = KL(q(z) \| \prod_d q(z_d))`, which is zero where the latents are
    independent over cells. Where the minibatch is the data set it is without bias. In a smaller one the logarithms of
    the estimated densities are too low: where a draw is near the posteriors of many cells, mostly that of the joint
    density, so that the estimate is too low and may be below zero; where it is near its own cell's alone, mostly those
    of the marginals, so that it is too high. The bias falls as the minibatch grows. Posteriors that are narrower than
    the distances between cells leave a mixture of N points, whose total correlation is large (up to (D - 1) log N for
    D latents) whatever the factors are that the cells were drawn from.

    Args:
        z: One draw per cell from its posterior.
        loc: Means of the posteriors.
        scale: Their standard deviations.
        num_cells: Number of cells in the data set.

    Returns:
        One estimate per draw, shape ``[*particles, cells]``.

    Raises:
        ValueError: If there is one cell of many.
    """
    joint, marginals = aggregate_log_density(z, loc, scale, num_cells)
    return joint - marginals.sum(-1)


@dataclass(frozen=True)
class TotalCorrelation:
    """The penalty of the beta-TC-VAE: ``weight`` times the total correlation of the aggregate posterior.

    The KL of the bound splits, on average over cells, into what z tells of which cell it is, the total correlation
    KL(q(z) || prod_d q(z_d)), and the KL of each latent's q(z_d) to its prior. A beta-VAE (``glp.Warmup(beta=...)``)
    weighs all three; this weighs the second alone: a weight of beta - 1 gives the beta-TC-VAE of that beta. It is not
    annealed with the KL. How it is estimated from a minibatch, and with which bias, says `total_correlation`; below an
    upper latent, q(z | x) is that given the draw of the upper latent.

    Args:
        weight: What the total correlation is multiplied by, at least 0.
        site: The latent site, whose guide is normal with independent latents.

    Raises:
        ValueError: If the weight is negative or not finite.

    References:
        Chen, Li, Grosse, Duvenaud (2018). Isolating sources of disentanglement in variational autoencoders.
        doi:10.48550/arXiv.1802.04942

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[16])
        >>> fit = glp.fit(vae, cells, penalties=[TotalCorrelation(5.0)], max_epochs=1, progress=False)
    """

    weight: float
    site: str = "z"

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def __call__(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Float[Tensor, ""]:
        """The penalty of a minibatch, in nats per cell.

        Raises:
            NotImplementedError: If the guide's distribution is not normal with independent latents.
            ValueError: If the guide has no such site, or the minibatch holds one cell of many.
        """
        node = _site(guide_trace, self.site)
        fn = node["fn"]
        if not is_normal(fn) or len(fn.event_shape) != 1:
            raise NotImplementedError(
                f"expected a normal guide with independent latents at the site {self.site!r}, whose density at the "
                f"draws of other cells is known, got {kind(fn)} of event shape {list(fn.event_shape)}; use a "
                "NormalEncoder, or AdversarialTotalCorrelation, which needs draws alone"
            )
        normal = innermost(fn)
        return self.weight * total_correlation(node["value"], normal.loc, normal.scale, minibatch.num_cells).mean()


class AdversarialTotalCorrelation(Declared):
    """The penalty of the FactorVAE: the total correlation as a discriminator sees it, for any guide with a path.

    A classifier D tells draws of q(z) from draws whose latents are shuffled over the cells, each by itself; the
    total correlation is the mean of log D(z) / (1 - D(z)), which is as good as the classifier: before it has learned
    it is near zero. At each call the penalty is read off first, and the classifier then takes a step of Adam on the
    same draws, without a path to the guide; where gradients are disabled it only answers. The paper shuffles the draws
    of a second minibatch.

    It is a game, which may be lost: where the guide changes faster than the classifier learns, as it does at a large
    weight, the latents run away from it and the total correlation rises. Look at it after the fit; `TotalCorrelation`
    needs no classifier.

    The classifier is trained beside the VAE, a new one in each run; it is part of the run's checkpoints, and not of the
    fit.

    Args:
        weight: What the total correlation is multiplied by (the paper's gamma), at least 0.
        latent_dim: Number of latents.
        site: The latent site.
        hidden_dims: Widths of the classifier's hidden layers.
        learning_rate: Of its Adam steps.
        seed: Seed of its initial weights.

    Raises:
        ValueError: If a number is out of range.

    References:
        Kim, Mnih (2018). Disentangling by factorising. doi:10.48550/arXiv.1802.05983

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=4, hidden_dims=[16])
        >>> penalty = AdversarialTotalCorrelation(5.0, latent_dim=4)
        >>> fit = glp.fit(vae, cells, penalties=[penalty], max_epochs=1, progress=False)
    """

    def __init__(
        self,
        weight: float,
        latent_dim: int,
        *,
        site: str = "z",
        hidden_dims: Sequence[int] = (64, 64),
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_weight(weight)
        self.weight, self.latent_dim, self.site = weight, latent_dim, site
        self.discriminator = Opponent(latent_dim, 1, hidden_dims, learning_rate=learning_rate, seed=seed)

    def forward(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Float[Tensor, ""]:
        """The penalty of a minibatch, in nats per cell.

        Raises:
            ValueError: If the guide has no such site, or it has another number of latents.
        """
        z = _site(guide_trace, self.site)["value"]
        if z.ndim < 2 or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"expected {self.latent_dim} latents at the site {self.site!r}, got shape {list(z.shape)}; declare "
                "the penalty with the latent_dim of the VAE"
            )
        self.discriminator.to(z.device, z.dtype)
        z = z.flatten(0, -2)
        penalty = self.weight * self.discriminator(z).mean()
        if torch.is_grad_enabled():
            # Draws of q(z), then as many of the product of its marginals.
            self.discriminator.learn(torch.cat([z, shuffled(z)]), _told_apart)
        return penalty


def _told_apart(logits: Float[Tensor, "draws 1"]) -> Float[Tensor, ""]:
    """Loss of a classifier whose first half of draws is of the one kind, and whose second half of the other."""
    drawn, independent = logits.chunk(2)
    return softplus(-drawn).mean() + softplus(independent).mean()


def shuffled(z: Float[Tensor, "draws latent"]) -> Float[Tensor, "draws latent"]:
    """The values of each latent in a random order of its own: draws of the product of the marginals."""
    return z.gather(0, torch.rand_like(z).argsort(0))


def _site(trace: Trace, site: str) -> dict[str, Any]:
    latents = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    if site not in latents:
        raise ValueError(f"expected a latent site of the guide among {latents}, got {site!r}")
    return trace.nodes[site]


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"expected weight to be finite and at least 0, got {weight!r}")
