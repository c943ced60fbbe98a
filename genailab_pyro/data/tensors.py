"""Registration of counts that come as tensors or arrays, without an AnnData."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.columns import Columns
from genailab_pyro.data.matrix import CountMatrix, is_sparse
from genailab_pyro.data.registration import register_columns
from genailab_pyro.data.validation import check_genes


def register_tensors(
    counts: Any,
    conditions: Mapping[str, Any] | Tensor | None,
    continuous: Mapping[str, Any] | Tensor | None,
    labels: Any,
    size_factor: Any,
    genes: Sequence[str] | None,
) -> Cells:
    """What ``Cells.from_tensors`` does; its arguments are explained there.

    Args:
        counts: Counts, shape ``[cells, genes]``.
        conditions: Values by name, or codes, shape ``[cells, conditions]``.
        continuous: Values by name, or values, shape ``[cells, covariates]``.
        labels: Label of each cell.
        size_factor: Size factor of each cell.
        genes: Names of the genes.

    Returns:
        The cells.

    Raises:
        TypeError: If an argument is of a kind that can not be read.
        ValueError: If shapes do not agree, or for what ``register`` refuses.
    """
    stored = _stored(counts)
    if stored.ndim != 2 or 0 in stored.shape:
        raise ValueError(f"counts: expected shape [cells, genes] with at least one of each, got {list(stored.shape)}")
    num_cells, num_genes = stored.shape
    names = [f"gene_{position}" for position in range(num_genes)] if genes is None else list(genes)
    if len(names) != num_genes:
        raise ValueError(f"genes: expected {num_genes} names, one for each column of counts, got {len(names)}")
    factors, covariates = _by_name(conditions, "conditions"), _by_name(continuous, "continuous")
    twice = sorted(set(factors) & set(covariates))
    if twice:
        raise ValueError(f"expected each name in conditions or in continuous, got {twice} in both")
    columns = Columns(
        {name: _categories(held, name, f'conditions["{name}"]', num_cells) for name, held in factors.items()},
        {name: _column(held, name, f'continuous["{name}"]', num_cells) for name, held in covariates.items()},
        None if labels is None else _categories(labels, "label", "labels", num_cells, lowest=-1),
        None if size_factor is None else _column(size_factor, "size_factor", "size_factor", num_cells),
        adata=False,
        fixed=frozenset(name for name, held in {**factors, "label": labels}.items() if isinstance(held, Tensor)),
    )
    obs_names = np.arange(num_cells).astype(str)
    return register_columns(check_genes(names, "genes"), columns, CountMatrix(stored, "counts"), obs_names)


def _array(values: Tensor) -> npt.NDArray[Any]:
    held = values.detach().cpu()
    return (held.float() if held.dtype is torch.bfloat16 else held).numpy()  # numpy has no bfloat16


def _stored(counts: Any) -> Any:
    if not isinstance(counts, Tensor):
        return counts if is_sparse(counts) else np.asarray(counts)
    if counts.layout is torch.strided:
        return _array(counts)
    rows = counts.detach().cpu().to_sparse_csr()
    parts = (_array(rows.values()), _array(rows.col_indices()), _array(rows.crow_indices()))
    return sp.csr_matrix(parts, shape=(rows.shape[0], rows.shape[1]))


def _by_name(values: Mapping[str, Any] | Tensor | None, role: str) -> dict[str, Any]:
    """Values by name; those without names get one for each column."""
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return {str(name): held for name, held in values.items()}
    if not isinstance(values, Tensor | np.ndarray) or (isinstance(values, np.ndarray) and values.dtype.kind in "OUS"):
        raise TypeError(
            f'{role}: expected a mapping of names to values, such as {{"batch": [...]}}, or a tensor of '
            f"numbers with one column for each of them, got {type(values).__name__}"
        )
    table = torch.as_tensor(values)
    if table.ndim != 2:
        raise ValueError(f"{role}: expected shape [cells, {role}], got {list(table.shape)}: use .reshape(-1, 1)")
    if role == "conditions" and (table.is_floating_point() or table.is_complex()):
        raise ValueError(
            f"conditions: expected integer codes, got {table.dtype}: turn one-hot rows into codes with "
            ".argmax(-1, keepdim=True); measured quantities belong in continuous"
        )
    name = {"conditions": "condition"}.get(role, role)
    return {f"{name}_{position}": table[:, position] for position in range(table.shape[1])}


def _column(values: Any, name: str, place: str, num_cells: int) -> pd.Series:
    held = _array(values) if isinstance(values, Tensor) else values
    if isinstance(held, str) or np.ndim(held) != 1 or len(held) != num_cells:
        got = f"shape {list(np.shape(held))}"
        raise ValueError(f"{place}: expected one value for each of {num_cells} cells, got {got}")
    return pd.Series(held, name=name).reset_index(drop=True)


def _categories(values: Any, name: str, place: str, num_cells: int, lowest: int = 0) -> pd.Series:
    """A categorical column; an integer tensor holds codes, whose levels are the numbers up to the largest."""
    column = _column(values, name, place, num_cells)
    if not isinstance(values, Tensor) or not pd.api.types.is_integer_dtype(column.dtype):
        return column
    codes = column.to_numpy(dtype=np.int64)
    if codes.min() < lowest:
        raise ValueError(f"{place}: expected codes from {lowest}, got {codes.min()}")
    levels = pd.Index([str(code) for code in range(int(codes.max()) + 1)])
    return pd.Series(pd.Categorical.from_codes(codes, categories=levels), name=name)
