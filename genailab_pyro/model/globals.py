"""Global latents: a parameter of a VAE with a prior and a posterior of its own, beside the amortised one of z.

    theta ~ N(prior_loc, prior_scale),    z_n ~ prior,    x_n ~ likelihood(decoder(z_n), library_n; theta),

with the guide ``q(theta) q(z_n)``: `pyro.infer.autoguide.AutoNormal` for the global latents, outside the plate of the
cells, and the VAE's own guide for those of each cell.

References:
    Hoffman, Blei, Wang, Paisley (2013). Stochastic variational inference. doi:10.48550/arXiv.1206.7055
"""

import itertools
from collections.abc import Mapping
from operator import attrgetter
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from genailab_pyro.model.vae import VAE
from genailab_pyro.nn import Declared
from genailab_pyro.types import Minibatch

_numbers = itertools.count()


class GlobalLatents(Declared):
    """A VAE some of whose parameters are latent, with independent normal priors, and their guide.

    It is trained by `pyro.infer.SVI`, with an estimator that offers the use ``"global latent"``; `glp.fit` and what it
    returns know latents of cells alone. `settle` hands the result to the VAE.

    Attributes:
        model: The generative program: a site for each global latent, then those of the VAE's model.
        guide: The variational program: the same sites without ``"x"``, in the same order.

    Args:
        vae: The VAE. A parameter that is latent is where its guide starts, and stays as it is until `settle`.
        priors: Mean and standard deviation of the prior of each element, by the name of a vector parameter of the VAE
            that acts on each gene by itself, such as ``"likelihood.log_inverse_dispersion.log_value"``. The name is
            that of the site, too.
        initial_scale: Standard deviation with which the guide of the global latents starts.

    Raises:
        ValueError: If there is no prior, the VAE has no such vector, or a standard deviation is not above zero.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> theta = "likelihood.log_inverse_dispersion.log_value"
        >>> latents = GlobalLatents(glp.VAE_NB.from_registration(cells, hidden_dims=[8]), {theta: (1.0, 1.0)})
        >>> model, guide, elbo = glp.estimators.get("pathwise").bind(latents.model, latents.guide)
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
        >>> losses = [svi.step(minibatch) for minibatch in cells.minibatches(350)]
        >>> {name: [*scale.shape] for name, (_, scale) in latents.posterior().items()}
        {'likelihood.log_inverse_dispersion.log_value': [765]}
    """

    def __init__(self, vae: VAE, priors: Mapping[str, tuple[float, float]], *, initial_scale: float = 0.1) -> None:
        super().__init__()
        parameters = dict(vae.named_parameters())
        vectors = [name for name, parameter in parameters.items() if parameter.dim() == 1]
        strange = [name for name in priors if name not in vectors]
        if not priors or strange:
            raise ValueError(
                f"expected priors of vector parameters of the VAE, among {', '.join(map(repr, vectors))}, got "
                f"{', '.join(map(repr, strange)) or 'none'}"
            )
        for name, (_, scale) in [*priors.items(), ("the guide", (0.0, initial_scale))]:
            if not scale > 0:
                raise ValueError(f"expected a standard deviation above 0 for {name}, got {scale!r}")
        self.vae = vae
        self.priors = {name: (float(loc), float(scale)) for name, (loc, scale) in priors.items()}
        # Pyro's store knows an automatic guide by the name of the module around it, and trains one of each name.
        self.automatic = PyroModule(name=f"global_{next(_numbers)}")
        start = init_to_value(values={name: parameters[name].detach().clone() for name in priors})
        self.automatic.guide = AutoNormal(self.draw, init_loc_fn=start, init_scale=float(initial_scale))
        with torch.random.fork_rng(), pyro.get_param_store().scope(), poutine.block():
            self.automatic.guide()  # its parameters are made in its first run

    @property
    def model(self) -> "GlobalModel":
        """The generative program, a module with all parameters."""
        return GlobalModel(self)

    @property
    def guide(self) -> "GlobalGuide":
        """The variational program, a module with all parameters."""
        return GlobalGuide(self)

    def draw(self) -> dict[str, Tensor]:
        """Declare the global latents with their priors; returns a draw of each."""
        drawn = {}
        for name, (loc, scale) in self.priors.items():
            like = self.vae.get_parameter(name).detach()
            prior = dist.Normal(torch.full_like(like, loc), torch.full_like(like, scale))
            drawn[name] = pyro.sample(name, prior.to_event(1))
        return drawn

    def posterior(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each global latent under the guide, of the parameter's shape."""
        guide = self.automatic.guide
        return {
            name: tuple(attrgetter(name)(part).detach() for part in (guide.locs, guide.scales)) for name in self.priors
        }

    def settle(self) -> VAE:
        """The VAE, with each latent parameter at its posterior mean."""
        with torch.no_grad():
            for name, (loc, _) in self.posterior().items():
                self.vae.get_parameter(name).copy_(loc)
        return self.vae


class GlobalModel(nn.Module):
    """The generative program of a VAE with global latents.

    Args:
        latents: Whose parameters it shares.
    """

    max_plate_nesting: ClassVar[int] = 1

    def __init__(self, latents: GlobalLatents) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, minibatch: Minibatch) -> Tensor:
        """Declare the global latents, then the sites of the cells; returns the value of ``"x"``."""
        vae = self.latents.vae
        pyro.module(vae.name, vae)
        drawn = {f"vae.{name}": value for name, value in self.latents.draw().items()}
        program = vae.model
        program.registers = False  # a draw in the place of a parameter is none
        return functional_call(program, drawn, (minibatch,))


class GlobalGuide(nn.Module):
    """The variational program of a VAE with global latents.

    Args:
        latents: Whose parameters it shares.
    """

    max_plate_nesting: ClassVar[int] = 1

    def __init__(self, latents: GlobalLatents) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, minibatch: Minibatch) -> Tensor:
        """Declare the global latents, then those of the cells; returns a draw of ``"z"``."""
        self.latents.automatic.guide()
        return self.latents.vae.guide(minibatch)
