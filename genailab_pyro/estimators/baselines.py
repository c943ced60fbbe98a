"""Control variates of the score: what is subtracted from the costs of a site, independent of its draw.

Each keeps what it has learned under the name of the site, or of the cell, and not by the place in a minibatch: it
survives minibatches that are shuffled, and a last one that is smaller.

References:
    Mnih, Gregor (2014). Neural variational inference and learning in belief networks. doi:10.48550/arXiv.1402.0030
"""

import itertools
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genailab_pyro.estimators.credit import ScoreSite

_numbers = itertools.count()


class Baseline(nn.Module):
    """Base of the baselines: ``baseline(site)`` is what is subtracted from the costs of a site.

    Its parameters are trained beside those of the guide, to minimise `loss`; what else it learns, `update` writes into
    buffers. In evaluation mode it stays as it is.

    Attributes:
        least_particles: The least number of particles that it works with.
        name: Name of its parameters in Pyro's store.
    """

    least_particles: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self._rename()

    def _rename(self) -> None:
        # Pyro's store trains only the first of two modules registered under one name.
        self.name = f"baseline_{next(_numbers)}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rename()

    def forward(self, site: ScoreSite) -> Float[Tensor, "*batch"]:
        """The baseline in nats, broadcastable to the costs; it must not depend on the draws whose costs it lowers."""
        raise NotImplementedError

    def update(self, site: ScoreSite) -> None:
        """Learn from the costs, after they were used."""

    def loss(self, site: ScoreSite) -> Float[Tensor, ""] | float:
        """What its parameters minimise: by default its mean squared error against the costs; 0 without parameters."""
        if next(self.parameters(), None) is None:
            return 0.0
        return ((site.cost - self(site)) ** 2).mean()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # What is kept for a site has a name and a size that only the data tell.
        for key, value in state_dict.items():
            name = key[len(prefix) :]
            if key.startswith(prefix) and "." not in name and name not in self._parameters:
                self.register_buffer(name, value.clone())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def kept(self, site: ScoreSite, what: str, size: int = 1) -> Tensor:
        """A tensor of zeros that is kept under a site's name, and saved with the module."""
        name = f"{what} of {site.name}".replace(".", "_")
        if name not in self._buffers or len(self._buffers[name]) < size:  # type: ignore[arg-type]
            new = torch.zeros(size, dtype=site.cost.dtype, device=site.cost.device)
            if name in self._buffers:
                old = self.get_buffer(name)
                new[: len(old)] = old
            self.register_buffer(name, new)
        kept = self.get_buffer(name)
        if kept.device != site.cost.device or kept.dtype != site.cost.dtype:  # it was loaded from a file
            kept = kept.to(site.cost)
            self.register_buffer(name, kept)
        return kept


class LeaveOneOut(Baseline):
    """The mean of the costs of the other particles.

    References:
        Mnih, Rezende (2016). Variational inference for Monte Carlo objectives. doi:10.48550/arXiv.1602.06725
        Kool, van Hoof, Welling (2019). Buy 4 REINFORCE samples, get a baseline for free!
    """

    least_particles = 2

    def forward(self, site: ScoreSite) -> Tensor:
        """Of the shape of the costs."""
        assert site.particle_dim is not None
        number = site.cost.shape[site.particle_dim]
        return (site.cost.sum(site.particle_dim, keepdim=True) - site.cost) / (number - 1)


class ConstantBaseline(Baseline):
    """One number per site: an exponential average of its costs.

    Args:
        decay: Share of the average that stays at a step; the first steps are averaged evenly.
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay

    def forward(self, site: ScoreSite) -> Tensor:
        """A scalar; zero before the first step."""
        return self.kept(site, "mean").squeeze(0)

    def update(self, site: ScoreSite) -> None:
        """Move the average towards the mean cost."""
        self._move(self.kept(site, "mean"), self.kept(site, "steps"), site.cost.mean())

    def _move(self, average: Tensor, seen: Tensor, value: Tensor) -> None:
        # An even mean of the first values, which an exponential one from zero would not be.
        seen += 1
        average += torch.clamp(1 / seen, min=1 - self.decay) * (value - average)


class CellBaseline(ConstantBaseline):
    """One number per site and cell, by the cell's position in the data set: exponential averages of their costs.

    Kept are the differences from the site's average, which follows the bound as it rises in training. A cell that was
    not seen yet, and a site in no plate of data, has the site's average.

    Args:
        decay: Share of an average that stays at a step; the first steps are averaged evenly.
    """

    def forward(self, site: ScoreSite) -> Tensor:
        """Of the shape of the cells."""
        average = super().forward(site)
        if site.index is None:
            return average
        return average + site.per_cell(self.kept(site, "differences", site.num_cells)[site.index])

    def update(self, site: ScoreSite) -> None:
        """Move the averages of the cells that were seen, and that of the site."""
        super().update(site)
        if site.index is None:
            return
        table = self.kept(site, "differences", site.num_cells)
        visits = self.kept(site, "visits", site.num_cells)
        average, seen = table[site.index], visits[site.index]
        self._move(average, seen, site.cell_means - self.kept(site, "mean"))
        table[site.index], visits[site.index] = average, seen


class NetworkBaseline(ConstantBaseline):
    """An amortised baseline: a network of a cell's data, in units of the spread of the costs around their average.

    It reads a fixed random projection of ``log1p`` of the rows beside the logarithm of their sum, so that its size
    does not depend on the data. Where there are no rows of data it is the site's average.

    Args:
        decay: Share of the average that stays at a step; the first steps are averaged evenly.
        width: Width of the projection and of the hidden layers.
    """

    projection: Tensor | None

    def __init__(self, decay: float = 0.9, width: int = 64) -> None:
        super().__init__(decay)
        self.width = width
        self.register_buffer("projection", None, persistent=False)
        with torch.random.fork_rng():  # so that estimators with and without it share their random numbers
            self.network = nn.Sequential(
                nn.Linear(width + 1, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
            )
            self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _standardised(self, site: ScoreSite) -> Tensor:
        assert site.inputs is not None
        rows = site.inputs.detach().to(self.head.weight.dtype)
        signed = rows.sign() * rows.abs().log1p()
        mixed = signed @ self._projection(rows.shape[1]).to(signed)
        features = torch.cat([mixed, rows.abs().sum(1, keepdim=True).log1p()], dim=1)
        return self.head(self.network(features)).squeeze(1)

    def _projection(self, columns: int) -> Tensor:
        """Of unit scale, and the same for all data with as many columns."""
        if self.projection is None or len(self.projection) != columns:
            generator = torch.Generator().manual_seed(columns)
            drawn = torch.randn(columns, self.width, generator=generator, dtype=torch.float64) / columns**0.5
            self.projection = drawn.to(self.head.weight)
        return self.projection

    def _spread(self, site: ScoreSite) -> Tensor:
        return self.kept(site, "square").sqrt().clamp(min=1e-3)

    def forward(self, site: ScoreSite) -> Tensor:
        """Of the shape of the cells."""
        average = super().forward(site)
        if site.inputs is None:
            return average
        return average + site.per_cell(self._spread(site) * self._standardised(site).detach())

    def update(self, site: ScoreSite) -> None:
        """Move the average and the spread of the costs."""
        super().update(site)
        squares = ((site.cost - self.kept(site, "mean")) ** 2).mean()
        steps = self.kept(site, "square_steps")
        self._move(self.kept(site, "square"), steps, squares)

    def loss(self, site: ScoreSite) -> Tensor | float:
        """Squared error of the standardised costs of the cells."""
        if site.inputs is None:
            return 0.0
        target = (site.cell_means - self.kept(site, "mean")) / self._spread(site)
        return ((self._standardised(site) - target) ** 2).mean()


BASELINES: dict[str, type[Baseline]] = {
    "leave-one-out": LeaveOneOut,
    "constant": ConstantBaseline,
    "cell-average": CellBaseline,
    "network": NetworkBaseline,
}
DELTA = "delta"
