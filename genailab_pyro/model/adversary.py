"""An adversary that takes what z tells of a condition, such as the batch, out of it."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from pyro.poutine import Trace
from torch import Tensor
from torch.nn.functional import cross_entropy

from genailab_pyro.model.opponent import Opponent, Scores
from genailab_pyro.nn import Declared, choose
from genailab_pyro.types import Latent, Minibatch


def information(scores: Scores, codes: Int[Tensor, " draws"], shares: Float[Tensor, " levels"]) -> Float[Tensor, ""]:
    r"""What a classifier knows of the condition: mean of :math:`\log D_c(z) - \log p(c)`, in nats.

    It is a lower bound of the mutual information of z and the condition over the draws, and is this where the
    classifier is the best there is; it may be below zero where it is worse than the shares alone.

    References:
        Barber, Agakov (2003). The IM algorithm. https://dl.acm.org/doi/10.5555/2981345.2981371
    """
    return (scores.log_softmax(-1).gather(-1, codes.unsqueeze(-1)).squeeze(-1) - shares[codes].log()).mean()


def conviction(scores: Scores, codes: Int[Tensor, " draws"], shares: Float[Tensor, " levels"]) -> Float[Tensor, ""]:
    r"""How far a classifier is from answering the shares: mean of :math:`\sum_k p(k) \log (p(k) / D_k(z))`, in nats.

    It is zero where the classifier tells nothing of any cell, and above elsewhere.

    References:
        Tzeng, Hoffman, Darrell, Saenko (2015). Simultaneous deep transfer across domains and tasks.
        doi:10.1109/ICCV.2015.463 (with equal shares)
    """
    seen = shares > 0
    return (shares[seen] * (shares[seen].log() - scores.log_softmax(-1)[:, seen])).sum(-1).mean()


MODES: dict[str, Callable[[Scores, Tensor, Tensor], Tensor]] = {"reversal": information, "alternating": conviction}


class ConditionAdversary(Declared):
    r"""A penalty on what z tells of a categorical condition, such as the batch, as a classifier sees it.

    A classifier D learns to tell the condition c from draws of z, by steps of Adam on its cross-entropy, without a path
    to the guide. The guide is paid for confusing it, in one of two games:

    - ``"reversal"``: :math:`w \, E[\log D_c(z) - \log p(c)]`, read off before the classifier's step, the information of
      z about c. Its gradient is the classifier's own, reversed, at the same weights (Ganin et al.).
    - ``"alternating"``: the classifier takes its step first, and the guide then pays for its distance from the
      shares of the levels, :math:`w \, E[\sum_k p(k) \log (p(k) / D_k(z))]` (Tzeng et al., for equal shares).

    The weight w rises linearly from zero over the first steps, in which the classifier learns. p(c) are the shares of
    the levels in the minibatch. A game may be lost: where the weight is large or the classifier slow (a learning rate
    below that of the guide), the latents run away from it and the batches part further. Weights of 3 to 10 are a place
    to begin. Where cell types have other shares in each batch, z tells the batch by its type, and a perfect game mixes
    types: look at the scores of the labels beside those of the batches.

    The classifier is trained beside the VAE, a new one in each run; it is part of the run's checkpoints, and not of the
    fit. The epoch whose weights a fit keeps is chosen by the validation ELBO, of which the penalty is no part:
    ``validation_fraction=0`` keeps the last.

    Args:
        weight: What the term is multiplied by after the rise, at least 0.
        latent_dim: Number of latents.
        levels: Number of levels of the condition, at least 2.
        condition: Position among the registered categorical conditions.
        mode: ``"reversal"`` or ``"alternating"``.
        rise: Number of the classifier's first calls over which the weight rises; 0 for none.
        steps: Steps that the classifier takes at each call.
        hidden_dims: Widths of the classifier's hidden layers.
        learning_rate: Of its Adam steps.
        seed: Seed of its initial weights.

    Raises:
        ValueError: If a number is out of range, or the mode unknown.

    References:
        Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand, Lempitsky (2016). Domain-adversarial
        training of neural networks. doi:10.48550/arXiv.1505.07818

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.simulate(60, 20, num_batches=2).adata
        >>> cells = glp.register(adata, conditions=["batch"])
        >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=4, hidden_dims=[16])
        >>> adversary = ConditionAdversary(10.0, latent_dim=4, levels=2)
        >>> fit = glp.fit(vae, cells, penalties=[adversary], max_epochs=1, progress=False)
    """

    calls: Tensor

    def __init__(
        self,
        weight: float,
        latent_dim: int,
        levels: int,
        *,
        condition: int = 0,
        mode: str = "reversal",
        rise: int = 500,
        steps: int = 1,
        hidden_dims: Sequence[int] = (128,),
        learning_rate: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"expected weight to be finite and at least 0, got {weight!r}")
        if levels < 2:
            raise ValueError(f"expected at least two levels of the condition, got {levels}; leave the adversary out")
        for name, value, least in (("condition", condition, 0), ("rise", rise, 0), ("steps", steps, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"expected {name} to be a whole number of at least {least}, got {value!r}")
        self.payoff = choose(MODES, mode, "mode")
        self.weight, self.latent_dim, self.levels, self.condition = weight, latent_dim, levels, condition
        self.learns_first, self.rise, self.steps = mode == "alternating", rise, steps
        self.opponent = Opponent(latent_dim, levels, hidden_dims, learning_rate=learning_rate, seed=seed)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Float[Tensor, ""]:
        """The penalty of a minibatch, in nats per cell.

        Raises:
            ValueError: If the guide has another number of latents, or the cells have no such condition.
        """
        z = guide_trace.nodes["z"]["value"]
        codes = self._codes(z, minibatch).expand(z.shape[:-1]).flatten()
        self.opponent.to(z.device, z.dtype)
        z = z.flatten(0, -2)
        shares = codes.bincount(minlength=self.levels).to(z.dtype) / len(codes)
        learning = torch.is_grad_enabled()
        strength = self.weight * (min(self.calls.item() / self.rise, 1.0) if self.rise else 1.0)
        if learning and self.learns_first:
            self._learn(z, codes)
        payoff = self.payoff(self.opponent(z), codes, shares)
        if learning and not self.learns_first:
            self._learn(z, codes)
        self.calls += learning
        return strength * payoff

    def _codes(self, z: Latent, minibatch: Minibatch) -> Int[Tensor, " cells"]:
        if z.ndim < 2 or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"expected {self.latent_dim} latents at the site 'z', got shape {list(z.shape)}; declare the adversary "
                "with the latent_dim of the VAE"
            )
        count = minibatch.conditions.shape[-1]
        if count <= self.condition:
            raise ValueError(
                f"expected cells with at least {self.condition + 1} categorical conditions, got {count}; register "
                "them: register(adata, conditions=[...])"
            )
        codes = minibatch.conditions[:, self.condition]
        if codes.max() >= self.levels:
            raise ValueError(
                f"expected codes of the condition below {self.levels}, got {codes.max().item()}; declare the adversary "
                "with levels=len(cells.registration.conditions[...].levels)"
            )
        return codes

    def _learn(self, z: Float[Tensor, "draws latent"], codes: Int[Tensor, " draws"]) -> None:
        for _ in range(self.steps):
            self.opponent.learn(z, lambda scores: cross_entropy(scores, codes))
