"""How much each latent dimension is used."""

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from genailab_pyro.plots.checks import as_vector
from genailab_pyro.plots.numbers import readable
from genailab_pyro.plots.style import FAINT, INK, PALETTE, SOFT, describe, headline, panels

_MOST_WRITTEN = 20


def kl_per_latent(kl: npt.ArrayLike, threshold: float = 0.01, *, active: npt.ArrayLike | None = None) -> Figure:
    """Draw the mean KL of each latent dimension, from the most used down, the active ones marked.

    Args:
        kl: Mean over cells of KL(q(z_d | x) ‖ p(z_d)), in nats, shape ``[latents]``.
        threshold: A latent is active when its mean KL is above this, in nats.
        active: Which latents are active by a stricter rule (one that also asks for the spread of posterior
            means), booleans of shape ``[latents]``; None takes the threshold alone.

    Returns:
        A figure of one panel: bars in falling order, each under its index.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the shapes differ, or a value is not finite.

    References:
        Burda, Y., Grosse, R., Salakhutdinov, R. (2016). Importance weighted autoencoders. ICLR.
        doi:10.48550/arXiv.1509.00519

    Example:
        >>> kl_per_latent([0.001, 2.5, 1.2]).axes[0].get_title(loc="left")
        ''
        >>> kl_per_latent([0.001, 2.5, 1.2]).get_suptitle()
        '2 of 3 latent dimensions are active; they carry 3.70 nats per cell'
    """
    values = as_vector("kl", kl)
    above = values > threshold
    if active is not None:
        above = as_vector("active", active, values.size) != 0
    order = np.argsort(-values, kind="stable")
    figure, (panel,) = panels(1, columns=1, panel_height=2.9)
    rows = np.arange(values.size)
    shades = [PALETTE[0] if above[latent] else SOFT for latent in order]
    panel.bar(rows, values[order], color=shades, width=0.75)
    if values.size <= _MOST_WRITTEN:
        for row, latent in zip(rows, order, strict=True):
            panel.annotate(
                f"{values[latent]:.2g}",
                (row, values[latent]),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=INK,
            )
    panel.margins(y=0.1)
    step = int(np.ceil(values.size / 32))
    panel.set_xticks(rows[::step], [str(latent) for latent in order[::step]])
    panel.set_xlim(-0.6, values.size - 0.4)
    panel.grid(visible=False, axis="x")
    rule = f"mean KL above {threshold:g} nats" if active is None else "by KL and spread of means"
    handles = [Patch(color=PALETTE[0], label=f"active: {rule}"), Patch(color=SOFT, label="not active")]
    legend = panel.legend(handles=handles, loc="upper right", fontsize=8.5, labelcolor=INK, edgecolor=FAINT)
    legend.get_frame().set_linewidth(0.6)
    describe(panel, x="Index of the latent dimension, from the most used down", y="Mean KL to the prior (nats)")
    carried = readable(float(values[above].sum()))
    headline(
        figure,
        f"{above.sum()} of {values.size} latent dimensions are active; they carry {carried} nats per cell",
    )
    return figure
