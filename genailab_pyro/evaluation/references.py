"""What a model of perturbations must be shown beside: simple predictors of a held-out group, and what real cells reach.

Each predictor is a function of a `PerturbationTask` that returns a shift per gene; the prediction is the task's real
controls moved by it, cut off at 0. `REFERENCES` names them; users may add theirs.

References:
    Ahlmann-Eltze, Huber, Anders (2025). Deep-learning-based gene perturbation effect prediction does not yet outperform
    simple linear baselines. doi:10.1038/s41592-025-02772-6
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

from genailab_pyro.evaluation.perturbation import ControlSplit, PerturbationScores, halves, score_perturbation
from genailab_pyro.evaluation.two_samples import Cells, Genes, checked_cells

PENALTIES = np.logspace(-4, 4, 17)
NUM_COMPONENTS = 50
HALF = "half against half"


class Group(NamedTuple):
    """Cells that were treated alike.

    Attributes:
        context: Their context, such as the cell type.
        perturbation: Their perturbation, such as the drug; combinations are joined, as in ``"A+B"``.
        dose: Their dose, in a unit in which the control's is 0; 1 where none is known.
    """

    context: Hashable
    perturbation: str
    dose: float = 1.0

    def __str__(self) -> str:
        return f"{self.context}, {self.perturbation}" + ("" if self.dose == 1 else f", dose {self.dose:g}")


class DoesNotApply(ValueError):
    """A predictor lacks the training cells that it needs; the message says which."""


@dataclass(frozen=True, eq=False)
class PerturbationTask:
    """A held-out group of cells, and the training cells from which it is to be predicted.

    Attributes:
        expression: Log-normalised training cells, of which none is of the target.
        context: Context of each training cell.
        perturbation: Perturbation of each training cell.
        target: What is to be predicted.
        dose: Dose of each training cell in any unit, above zero but for controls; None where none is known.
        control: The perturbation that is none.
        separator: What joins the perturbations of a combination.

    Raises:
        ValueError: If the columns are not one per cell, a training cell is of the target, the target's context has no
            control, or a perturbed cell's dose is not above zero.

    Example:
        >>> expression = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 1.0]])
        >>> task = PerturbationTask(
        ...     expression, ["T", "T", "B"], ["control", "drug", "control"], target=Group("B", "drug")
        ... )
        >>> task.predict(mean_shift(task))
        array([[4., 1.]])
    """

    expression: Cells = field(repr=False)
    context: np.ndarray = field(repr=False)
    perturbation: np.ndarray = field(repr=False)
    target: Group
    dose: Any = field(default=None, repr=False)
    control: str = "control"
    separator: str = "+"

    def __post_init__(self) -> None:
        (expression,) = checked_cells(expression=self.expression)
        columns = {
            "context": np.asarray(self.context),
            "perturbation": np.asarray(self.perturbation, dtype=object),
            "dose": np.ones(len(expression)) if self.dose is None else np.asarray(self.dose, dtype=float),
        }
        for name, column in columns.items():
            if column.shape != expression.shape[:1] or pd.isna(column).any():
                raise ValueError(
                    f"expected the {name} of each of {len(expression)} cells, got shape {list(column.shape)} with "
                    f"{int(pd.isna(column).sum())} missing; leave out cells of which it is not known"
                )
        columns["perturbation"] = columns["perturbation"].astype(str)
        for name, column in {**columns, "expression": expression}.items():
            object.__setattr__(self, name, column)
        if not (self.dose[self.perturbed] > 0).all() or not self.target.dose > 0:
            raise ValueError(
                f"expected doses above 0 of perturbed cells, got others; the perturbation of dose 0 is {self.control!r}"
            )
        parts = sorted(self.target.perturbation.split(self.separator))
        alike = [name for name in set(self.perturbation) if sorted(name.split(self.separator)) == parts]
        if any(self.cells_of(self.target._replace(perturbation=name)).any() for name in alike):
            raise ValueError(f"expected no training cells of the target ({self.target}); see PerturbationTask.hold_out")
        if not len(self.controls):
            raise ValueError(
                f"expected training controls ({self.control!r}) of the context {self.target.context!r}, got none; "
                "without them there is nothing to shift"
            )

    @classmethod
    def hold_out(
        cls,
        expression: Cells,
        cells: pd.DataFrame,
        target: Group | tuple[Any, ...],
        *,
        context: str,
        perturbation: str,
        dose: str | None = None,
        control: str = "control",
        separator: str = "+",
    ) -> tuple["PerturbationTask", Cells]:
        """Take one group of cells out of all: the task, and the real cells that were taken out.

        Args:
            expression: All cells, log-normalised.
            cells: One row per cell, such as ``adata.obs``.
            target: The group to hold out: a context and a perturbation, and a dose where there are some.
            context: Name of the column of contexts.
            perturbation: Name of the column of perturbations.
            dose: Name of the column of doses, or None.
            control: The perturbation that is none.
            separator: What joins the perturbations of a combination.

        Raises:
            KeyError: If a column is missing.
            ValueError: If there is no cell of the target, or the rest makes no task.
        """
        (expression,), target = checked_cells(expression=expression), Group(*target)
        missing = [name for name in (context, perturbation, dose) if name is not None and name not in cells]
        if missing:
            raise KeyError(f"expected the columns {missing} of the cells, got {[*map(str, cells.columns)]}")
        contexts, perturbations = np.asarray(cells[context]), np.asarray(cells[perturbation])
        doses = np.ones(len(cells)) if dose is None else cells[dose].to_numpy(dtype=float)
        held = (
            (contexts == target.context) & (perturbations.astype(str) == target.perturbation) & (doses == target.dose)
        )
        if len(held) != len(expression) or not held.any():
            raise ValueError(
                f"expected cells of {target} among {len(expression)}, got {int(held.sum())} in a table of {len(held)}"
            )
        task = cls(
            expression[~held],
            contexts[~held],
            perturbations[~held],
            target,
            dose=doses[~held],
            control=control,
            separator=separator,
        )
        return task, expression[held]

    @cached_property
    def perturbed(self) -> Bool[np.ndarray, " cells"]:
        """Training cells that are no controls."""
        return self.perturbation != self.control

    @cached_property
    def controls(self) -> Cells:
        """Training controls of the target's context."""
        return self.expression[self._controls_of(self.target.context)]

    @cached_property
    def groups(self) -> list[Group]:
        """Perturbed groups of training cells whose context has controls, in the order of the cells."""
        columns = (self.context, self.perturbation, self.dose)
        found = dict.fromkeys(Group(*row) for row in zip(*(column[self.perturbed] for column in columns), strict=True))
        return [group for group in found if self._controls_of(group.context).any()]

    @cached_property
    def centroids(self) -> Float[np.ndarray, "groups genes"]:
        """Mean of each perturbed group of training cells of the target's context."""
        own = [group for group in self.groups if group.context == self.target.context]
        means = [self.expression[self.cells_of(group)].mean(0) for group in own]
        return np.reshape(means, (len(own), self.expression.shape[1]))

    @cached_property
    def projection(self) -> PCA:
        """Principal components of the training cells, at most 50."""
        number = min(NUM_COMPONENTS, len(self.expression) - 1, self.expression.shape[1])
        return PCA(number, random_state=0).fit(self.expression)

    def cells_of(self, group: Group) -> Bool[np.ndarray, " cells"]:
        """Which training cells are of a group."""
        return (self.context == group.context) & (self.perturbation == group.perturbation) & (self.dose == group.dose)

    def control_mean(self, context: Hashable) -> Genes:
        """Mean of the training controls of a context."""
        return self.expression[self._controls_of(context)].mean(0)

    def shift(self, group: Group) -> Genes:
        """Mean of a group less the mean of its context's controls."""
        return self.expression[self.cells_of(group)].mean(0) - self.control_mean(group.context)

    def predict(self, shift: Genes) -> Cells:
        """The real controls moved by a shift, with negative values set to 0."""
        return np.clip(self.controls + shift, 0, None)

    def split_controls(self, seed: int = 0) -> tuple["PerturbationTask", Cells]:
        """The task with half of the target's controls, and the other half."""
        rows = np.flatnonzero(self._controls_of(self.target.context))
        other = rows[halves(len(rows), seed)[1]]
        kept = np.ones(len(self.expression), dtype=bool)
        kept[other] = False
        columns = {name: getattr(self, name)[kept] for name in ("expression", "context", "perturbation", "dose")}
        return replace(self, **columns), self.expression[other]

    def _controls_of(self, context: Hashable) -> Bool[np.ndarray, " cells"]:
        return (self.context == context) & ~self.perturbed


def no_change(task: PerturbationTask) -> Genes:
    """No shift: the controls as they are."""
    return np.zeros(task.expression.shape[1])


def mean_shift(task: PerturbationTask) -> Genes:
    """Mean over the other contexts of the shift by the same perturbation and dose."""
    return np.mean([task.shift(group) for group in _elsewhere(task)], axis=0)


def nearest_context(task: PerturbationTask) -> Genes:
    """The shift in the context with the nearest mean of controls, by the Euclidean distance over genes."""
    own = task.control_mean(task.target.context)
    return task.shift(min(_elsewhere(task), key=lambda group: np.linalg.norm(task.control_mean(group.context) - own)))


def mean_perturbation(task: PerturbationTask) -> Genes:
    """Mean of the shifts of all other perturbations in the same context: what they have in common (Systema)."""
    own = [group for group in task.groups if group.context == task.target.context]
    others = [group for group in own if group.perturbation != task.target.perturbation]
    if not others:
        raise DoesNotApply(f"no other perturbation was seen in {task.target.context}")
    return np.mean([task.shift(group) for group in others], axis=0)


def additive(task: PerturbationTask) -> Genes:
    """Sum of the shifts of the single perturbations of a combination, in the same context and at the same dose."""
    singles = task.target.perturbation.split(task.separator)
    if len(singles) == 1:
        raise DoesNotApply(f"{task.target.perturbation} is no combination")
    parts = [task.target._replace(perturbation=single) for single in singles]
    missing = [str(part) for part in parts if part not in task.groups]
    if missing:
        raise DoesNotApply(f"no training cells of {'; '.join(missing)}")
    return np.sum([task.shift(part) for part in parts], axis=0)


def nearest_doses(task: PerturbationTask) -> Genes:
    """Mean of the shifts at the next lower and the next higher dose of the same perturbation in the same context.

    The control is dose 0, below all others; above the highest dose there is none, and the next lower one is taken.
    """
    own = task.target.dose
    lower, higher = ([dose for dose in _doses(task) if (dose < own) == below] for below in (True, False))
    shifts = [task.shift(task.target._replace(dose=max(lower)))] if lower else [no_change(task)]
    shifts += [task.shift(task.target._replace(dose=min(higher)))] if higher else []
    return np.mean(shifts, axis=0)


def linear_in_log_dose(task: PerturbationTask) -> Genes:
    r"""Least squares of each gene on the logarithm of the dose, in the target's context with its controls.

    .. math:: E[x_g \mid d] = a_g + b_g \log(1 + d / d_0),

    with :math:`d_0` the smallest dose of the task, so that the unit does not matter and the control is at 0.
    """
    _doses(task)
    rows = (task.context == task.target.context) & (~task.perturbed | (task.perturbation == task.target.perturbation))
    design = np.column_stack([np.ones(rows.sum()), np.where(task.perturbed, _log_dose(task, task.dose), 0.0)[rows]])
    coefficients = np.linalg.lstsq(design, task.expression[rows], rcond=None)[0]
    predicted = coefficients[0] + coefficients[1] * _log_dose(task, np.array([task.target.dose]))
    return predicted - task.control_mean(task.target.context)


def ridge_on_pca(task: PerturbationTask) -> Genes:
    r"""Ridge regression of the shifts of all training groups on what the group is.

    .. math:: s_{cpd} = e(d) \Big(a + \sum_{i \in p} b_i + W\,y_c\Big),

    with i the single perturbations of p, :math:`y_c` the principal components of the mean of the context's controls
    (in all of unit variance over groups), and :math:`e(d) = \log(1 + d / d_0)` where there are several doses, else 1.
    The penalty, on b and W, has the least leave-one-group-out error.
    """
    if len(task.groups) < 3:
        raise DoesNotApply(f"at least three perturbed training groups are needed, got {len(task.groups)}")
    names = sorted({name for group in task.groups for name in group.perturbation.split(task.separator)})
    unseen = [name for name in task.target.perturbation.split(task.separator) if name not in names]
    if unseen:
        raise DoesNotApply(f"no training cells of {', '.join(unseen)}")
    groups = [*task.groups, task.target]
    parts = np.array([[name in group.perturbation.split(task.separator) for name in names] for group in groups], float)
    contexts = task.projection.transform(np.stack([task.control_mean(group.context) for group in groups]))
    contexts -= contexts[:-1].mean(0)
    contexts /= np.sqrt(contexts[:-1].var(0).sum()) or 1.0
    features = np.hstack([parts, contexts])
    scale = _log_dose(task, np.array([group.dose for group in groups]))
    shifts = np.stack([task.shift(group) for group in task.groups]) / scale[:-1, None]
    fitted = RidgeCV(PENALTIES).fit(features[:-1], shifts, sample_weight=scale[:-1] ** 2)
    return scale[-1] * fitted.predict(features[-1:])[0]


REFERENCES: dict[str, Callable[[PerturbationTask], Genes]] = {
    "no change": no_change,
    "mean shift": mean_shift,
    "nearest context": nearest_context,
    "mean perturbation": mean_perturbation,
    "additive": additive,
    "nearest doses": nearest_doses,
    "linear in log dose": linear_in_log_dose,
    "ridge on PCA": ridge_on_pca,
}
"""The predictors by name; one that lacks the training cells it needs raises `DoesNotApply`."""


class Predictions(NamedTuple):
    """Predictions of the references for one task.

    Attributes:
        cells: Predicted cells by name, one for each of the task's controls and in their order.
        left_out: Why the others do not apply, by name.
    """

    cells: dict[str, Cells]
    left_out: dict[str, str]


def predict_references(task: PerturbationTask) -> Predictions:
    """The cells of the target by each reference that applies to the task.

    Args:
        task: The task.

    Returns:
        The predictions, and why the others are left out.
    """
    cells, left_out = {}, {}
    for name, reference in REFERENCES.items():
        try:
            cells[name] = task.predict(reference(task))
        except DoesNotApply as reason:
            left_out[name] = str(reason)
    return Predictions(cells, left_out)


def score_references(
    task: PerturbationTask,
    real: Cells,
    *,
    models: Mapping[str, Cells] | None = None,
    top: int = 50,
    seed: int = 0,
) -> dict[str, PerturbationScores]:
    """Scores of all references that apply, of what real cells reach, and of models beside them.

    Distances are in the task's principal components. For the split controls a reference is fitted a second time without
    the half that the real shift subtracts; a model is not (see `score_perturbation`). ``"half against half"`` scores
    one half of the real cells as a prediction of the other. It carries the noise of half the cells: a smooth predictor
    may exceed it.

    Args:
        task: The task.
        real: The real cells of the target.
        models: Predicted cells of models by name, one made from each of ``task.controls`` and in their order, or
            several such sets of draws below each other.
        top: Number of genes for the scores over few.
        seed: Seed of the halves.

    Returns:
        Scores by method, for `perturbation_table`.

    Raises:
        ValueError: If there are fewer than two real cells or controls, or a model's cells do not fit.
    """
    halved, second = task.split_controls(seed)
    given, kept = halves(len(real), seed)
    again = predict_references(halved).cells
    common = {
        "controls": task.controls,
        "centroids": task.centroids if len(task.centroids) else None,
        "projection": task.projection,
        "top": top,
    }
    scores = {
        HALF: score_perturbation(
            real=real[kept],
            predicted=real[given],
            split=ControlSplit(real[given], halved.controls, second),
            **common,
        )
    }
    for name, cells in predict_references(task).cells.items():
        split = ControlSplit(again[name], halved.controls, second)
        scores[name] = score_perturbation(real=real, predicted=cells, split=split, **common)
    for name, cells in (models or {}).items():
        number = len(task.controls)
        origin = np.arange(len(cells)) % number if len(cells) % number == 0 else np.arange(number)
        scores[name] = score_perturbation(real=real, predicted=cells, origin=origin, seed=seed, **common)
    return scores


def _elsewhere(task: PerturbationTask) -> list[Group]:
    target = task.target
    groups = [group for group in task.groups if group[1:] == target[1:] and group.context != target.context]
    if not groups:
        raise DoesNotApply(f"{target._replace(context='any other context')} was not seen")
    return groups


def _doses(task: PerturbationTask) -> list[float]:
    """Doses of the target's perturbation in its context."""
    doses = [group.dose for group in task.groups if group[:2] == task.target[:2]]
    if not doses:
        raise DoesNotApply(f"no other dose of {task.target.perturbation} was seen in {task.target.context}")
    return doses


def _log_dose(task: PerturbationTask, dose: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
    """The logarithm in which the dose acts; 1 where all doses are the same."""
    doses = [*(group.dose for group in task.groups), task.target.dose]
    return np.log1p(dose / min(doses)) if len(set(doses)) > 1 else np.ones_like(dose)
