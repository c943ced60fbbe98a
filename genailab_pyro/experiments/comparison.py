"""What a comparison of estimators measured: as a dataset, a table and figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from genailab_pyro import plots
from genailab_pyro.files import whole
from genailab_pyro.nn import choose


@dataclass(frozen=True, eq=False)
class EstimatorComparison:
    """Bias, variance, signal-to-noise and cost of gradient estimators at frozen parameters.

    Gradients are in nats per cell, their variances in (nats per cell)^2: traces of covariances over the parameters of
    a group.

    Attributes:
        dataset: Over the dimensions ``checkpoint``, ``group``, ``estimator``, ``projection`` and ``draw``:

            - ``bias`` and ``bias_standard_error``: difference of the mean gradient, projected on random directions,
              from a precise reference of the same objective by fresh random numbers (for a relaxed ELBO: of the
              ELBO), named by the coordinate ``bias_reference``; of an estimator that is its own reference it shows the
              precision of the measurement, and nothing of a bias;
            - ``difference`` and ``difference_standard_error``: the same from the reference of the ratios, paired by
              common random numbers; NaN where the objectives differ;
            - ``variance`` given the minibatch, and ``variance_between_minibatches``, which no estimator lowers;
            - ``ratio`` of the variance to that of the reference, with its 95 % bootstrap interval ``ratio_low`` to
              ``ratio_high``;
            - ``signal_to_noise``: norm of the mean over the standard deviation;
            - ``seconds`` per gradient (median), ``variance_seconds`` their product with the variance, ``evaluations``
              of the model per gradient and cell, ``particles``;
            - ``projected`` draws on the first direction, with the mean ``projected_reference``;
            - ``signal_to_noise_by_particles`` at the last checkpoint.
    """

    dataset: xr.Dataset

    def to_dataframe(self) -> pd.DataFrame:
        """One row per checkpoint, group and estimator.

        The bias is summed up by ``bias_errors``, its largest absolute value over the projections in standard errors
        (above 5: biased for its objective), and likewise ``difference_errors``.
        """
        data = self.dataset
        table = xr.Dataset(
            {
                "variance": data["variance"],
                "ratio": data["ratio"],
                "ratio_low": data["ratio_low"],
                "ratio_high": data["ratio_high"],
                "bias_errors": _errors(data["bias"], data["bias_standard_error"]),
                "difference_errors": _errors(data["difference"], data["difference_standard_error"]),
                "signal_to_noise": data["signal_to_noise"],
                "variance_between_minibatches": data["variance_between_minibatches"],
                "seconds": data["seconds"],
                "variance_seconds": data["variance_seconds"],
                "evaluations": data["evaluations"],
                "particles": data["particles"],
            }
        )
        frame = table.to_dataframe(dim_order=["checkpoint", "group", "estimator"])
        first = ["objective", "bias_reference", "particles"]
        return frame[[*first, *[name for name in frame if name not in first]]]

    def __repr__(self) -> str:
        sizes = self.dataset.sizes
        counts = ", ".join(f"{sizes[name]} {name}s" for name in ("estimator", "checkpoint", "group"))
        return f"EstimatorComparison({counts}; {self.dataset.attrs['num_draws']} draws)"

    def at(self, checkpoint: str | None = None, group: str | None = None) -> xr.Dataset:
        """What was measured at a checkpoint (None: the last) for a group of parameters (None: the first).

        Raises:
            ValueError: If there is no such checkpoint or group.
        """
        chosen = {}
        for name, wanted, position in (("checkpoint", checkpoint, -1), ("group", group, 0)):
            known = [str(value) for value in self.dataset[name].values]
            chosen[name] = choose({value: value for value in known}, wanted or known[position], name)
        return self.dataset.sel(chosen)

    def plot(self, checkpoint: str | None = None, group: str | None = None) -> Mapping[str, Figure]:
        """Figures of a checkpoint (None: the last) and a group of parameters (None: the first).

        Returns:
            ``"gradient_variance"``, ``"variance_against_cost"``, ``"gradient_histograms"``, and, where it was measured,
            ``"signal_to_noise"`` against the number of particles.
        """
        data = self.at(checkpoint, group)
        names = [str(name) for name in data["estimator"].values]
        where = f"{data['group'].item()}, checkpoint {data['checkpoint'].item()}"
        reference = data["variance"].sel(estimator=self.dataset.attrs["reference"]).item()
        intervals = np.stack([data["ratio_low"] * reference, data["ratio_high"] * reference], axis=-1)
        variances = data["variance"].values
        intervals = np.where(np.isfinite(intervals), intervals, variances[:, None])
        intervals = np.stack([np.minimum(intervals[:, 0], variances), np.maximum(intervals[:, 1], variances)], axis=-1)
        # Variance and cost are weighed against each other for estimators of one objective only.
        objective = data["objective"].sel(estimator=self.dataset.attrs["reference"]).item()
        same = (data["objective"] == objective).values
        unit = "Variance of the gradient, summed over parameters ((nats per cell)²)"
        figures = {
            "gradient_variance": plots.gradient_variances(
                names, variances, intervals, xlabel=unit, title=f"Variance of the gradient: {where}"
            ),
            "variance_against_cost": plots.variance_against_cost(
                [name for name, kept in zip(names, same, strict=True) if kept],
                variances[same],
                data["seconds"].values[same],
                intervals=intervals[same],
                ylabel=unit,
                title=f"Variance and cost of a gradient of the {objective}: {where}",
            ),
            "gradient_histograms": plots.gradient_histograms(
                {name: data["projected"].sel(estimator=name).values for name in names},
                xlabel="Projection of the gradient (nats per cell)",
                title=f"Draws of one projection of the gradient: {where}",
            ),
        }
        if "signal_to_noise_by_particles" in data:
            ratios = data["signal_to_noise_by_particles"]
            seen = ratios.where(ratios > 0)  # below that, the mean is lost in the scatter of the draws
            kept = [name for name in names if np.isfinite(seen.sel(estimator=name)).any()]
            figures["signal_to_noise"] = plots.signal_to_noise(
                data["num_particles"].values,
                {name: seen.sel(estimator=name).values for name in kept},
                title=f"Signal-to-noise of the gradient: {ratios.attrs['group']}, last checkpoint",
            )
        return figures

    def save(self, path: str | Path) -> Path:
        """Write the dataset as netCDF.

        Args:
            path: A file, such as ``"comparison.nc"``; one that is there is replaced.
        """
        return write_dataset(self.dataset, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        return cls(read_dataset(path))


def write_dataset(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a dataset as netCDF; a file that is there is replaced."""
    path = Path(path)
    with whole(path) as part:
        dataset.to_netcdf(part, engine="h5netcdf")
    return path


def read_dataset(path: str | Path) -> xr.Dataset:
    """Read a dataset that `write_dataset` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a netCDF file at {path}, found none; name the file that save has written")
    with xr.open_dataset(path, engine="h5netcdf") as opened:
        return opened.load()


def _errors(differences: xr.DataArray, errors: xr.DataArray) -> xr.DataArray:
    """The largest absolute difference over projections, in standard errors; rounding alone counts for nothing."""
    size = np.abs(differences)
    within = size <= 1e-6 * errors.max() + 1e-12
    return xr.where(within, 0.0, size / errors.where(errors > 0, 1e-300)).max("projection", skipna=False)
