"""The Pyro programs of a VAE: its model and its guide."""

from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from genailab_pyro.nn import beside
from genailab_pyro.types import Minibatch

if TYPE_CHECKING:
    from genailab_pyro.model.vae import VAE


class Program(nn.Module):
    """A Pyro program of a VAE that is a module with the VAE's parameters.

    (A bound method shows no parameters to torch.)

    Attributes:
        registers: Whether each run shows the parameters to Pyro's store, where Pyro's optimizers find them. It takes
            time, and one that holds the parameters by itself does not need it.

    Args:
        vae: Whose parameters it shares.
    """

    max_plate_nesting: ClassVar[int] = 1

    def __init__(self, vae: "VAE") -> None:
        super().__init__()
        self.vae = vae
        self.registers = True

    def register(self, *names: str) -> None:
        """Show the parameters of some parts to Pyro, if it is to see them."""
        if self.registers:
            self.vae.register_parts(*names)


class Model(Program):
    """The generative program of a VAE."""

    def forward(self, minibatch: Minibatch) -> Tensor:
        """Declare the sites of the cells; returns the value of ``"x"``, shape ``[*particles, cells, genes]``."""
        vae = self.vae
        self.register("condition", "prior", "library", "upper", "decoder", "likelihood", "heads")
        observed = vae.likelihood.observed(minibatch)  # of the data alone, whatever the latent library is
        with cells_plate(minibatch):
            if vae.library is not None:
                library = pyro.sample("library", vae.library.prior(minibatch))
                minibatch = minibatch._replace(library=library)
            condition = context = vae.condition(minibatch)
            upper = None
            if vae.upper is not None:
                upper = pyro.sample(vae.upper.site, vae.upper.prior(condition))
                context = beside(condition, upper)
            z = pyro.sample("z", vae.prior(context))
            for head in vae.heads:
                self._observe(head, z, minibatch, upper)
            likelihood = vae.likelihood(vae.decoder(z, condition), minibatch)
            return pyro.sample("x", likelihood, obs=observed)

    @staticmethod
    def _observe(head: Any, z: Tensor, minibatch: Minibatch, upper: Tensor | None) -> None:
        found = head.observed(minibatch)
        if found is not None and found[1].any():
            value, known = found
            # What is not known may be anything; a value of the support has finite derivatives, which the mask drops.
            given = known.reshape(-1, *[1] * (value.dim() - 1))
            value = torch.where(given, value, value[known][0])
            with poutine.scale(scale=head.weight), poutine.mask(mask=known):
                pyro.sample(head.site, head(z, minibatch, upper), obs=value, infer={"is_head": True})


class Guide(Program):
    """The variational program of a VAE."""

    def forward(self, minibatch: Minibatch) -> Tensor:
        """Declare the latent sites; returns a draw of ``"z"``, shape ``[*particles, cells, latent]``."""
        vae = self.vae
        self.register("library", "upper", "encoder")
        with cells_plate(minibatch):
            if vae.library is not None:
                pyro.sample("library", vae.library.posterior(minibatch))
            if vae.upper is None:
                return pyro.sample("z", vae.encoder(minibatch))
            upper = pyro.sample(vae.upper.site, vae.upper.posterior(minibatch))
            return pyro.sample("z", vae.encoder(minibatch, upper))


def cells_plate(minibatch: Minibatch) -> Any:
    """The plate ``"cells"``: as large as the data set, holding the cells of the minibatch."""
    return pyro.plate("cells", minibatch.num_cells, subsample=minibatch.index, dim=-1)
