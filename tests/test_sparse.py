"""Matrices that are mostly zero against the same matrices written out."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from genailab_pyro.nn import MLP, InputLayer
from genailab_pyro.sparse import CountTensor, Nonzeros, counts_tensor, nonzeros_of

ROWS, COLUMNS = 4, 5
MOST = 0.75  # of the values are not zero where a tensor knows which
MATRICES = {
    "mixed": [[0, 2, 0, 0, 1], [3, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 7, 0, 4]],
    "empty rows": [[0, 0, 0, 0, 0], [1, 0, 0, 0, 2], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    "empty columns": [[0, 0, 2, 0, 0], [0, 0, 1, 0, 0], [0, 0, 5, 0, 0], [0, 0, 1, 0, 0]],
    "all zero": [[0] * COLUMNS] * ROWS,
    "no zero": [[1, 2, 3, 1, 5]] * ROWS,
    "one row": [[0, 1, 0, 6, 0]],
    "one column": [[0], [1], [0], [4]],
    "one value": [[2]],
}
matrices = pytest.mark.parametrize("matrix", [np.array(matrix, float) for matrix in MATRICES.values()], ids=MATRICES)
index_types = pytest.mark.parametrize("index_type", [np.int32, np.int64])


def csr(matrix, index_type=np.int32):
    found = sp.csr_matrix(matrix)
    found.indices, found.indptr = found.indices.astype(index_type), found.indptr.astype(index_type)
    return found


def nonzeros(matrix=MATRICES["mixed"], index_type=np.int32):
    return Nonzeros.of(csr(np.array(matrix, float), index_type))


def draws(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def places(matrix):
    """Rows and columns of the non-zero values, by a search of the whole."""
    return tuple(torch.tensor(index) for index in np.nonzero(matrix))


class TestEntries:
    @matrices
    @pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
    @pytest.mark.parametrize("repeated", ["nothing", "rows", "columns", "both"])
    def test_at_takes_the_values_of_another_matrix(self, matrix, lead, repeated):
        rows = 1 if repeated in ("rows", "both") else matrix.shape[0]
        columns = 1 if repeated in ("columns", "both") else matrix.shape[1]
        tensor = draws(*lead, rows, columns)
        whole = tensor.expand(*lead, *matrix.shape)
        assert torch.equal(nonzeros(matrix).at(tensor), whole[(..., *places(matrix))])

    @matrices
    def test_at_takes_the_values_of_a_vector_of_columns_or_of_one_number(self, matrix):
        for tensor in (draws(matrix.shape[1]), draws(1), draws()):
            expected = tensor.expand(*matrix.shape)[places(matrix)]
            assert torch.equal(nonzeros(matrix).at(tensor), expected)

    def test_at_takes_the_values_of_what_is_not_contiguous(self):
        for tensor in (draws(COLUMNS, ROWS).t(), draws(ROWS, COLUMNS, 3).movedim(-1, 0), draws(8, 10)[::2, 1::2]):
            expected = tensor[(..., *places(MATRICES["mixed"]))]
            assert torch.equal(nonzeros().at(tensor), expected)

    def test_gradients_come_back_from_where_values_were_taken(self):
        for shape in ((COLUMNS,), (1, COLUMNS), (ROWS, 1), (ROWS, COLUMNS), (2, ROWS, COLUMNS), (2, 1, COLUMNS)):
            assert torch.autograd.gradcheck(nonzeros().at, draws(*shape).requires_grad_())

    @matrices
    @pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("method", ["put_", "add_"])
    def test_values_are_written_and_added_in_place(self, matrix, lead, shared, method):
        found = nonzeros(matrix)
        tensor, values = draws(*lead, *matrix.shape), draws(*(() if shared else lead), len(found.values), seed=1)
        expected = tensor.clone()
        index = (..., *places(matrix))
        expected[index] = values + (tensor[index] if method == "add_" else 0)
        result = getattr(found, method)(tensor, values)
        assert result is tensor
        assert torch.equal(tensor, expected)

    @matrices
    @pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
    @pytest.mark.parametrize("to", ["nothing", "a number", "rows", "columns", "the last of leads", "all"])
    def test_values_are_summed_to_a_shape(self, matrix, lead, to):
        found, (rows, columns) = nonzeros(matrix), matrix.shape
        shape = {
            "nothing": (),
            "a number": (1,),
            "rows": (rows, 1),
            "columns": (columns,),
            "the last of leads": (*lead[-1:], 1, columns),
            "all": (*lead, rows, columns),
        }[to]
        values = draws(*lead, len(found.values))
        whole = found.put_(torch.zeros(*lead, rows, columns, dtype=torch.float64), values)
        torch.testing.assert_close(found.sum_to_size(values, shape), whole.sum_to_size(shape), rtol=1e-14, atol=1e-14)

    @matrices
    @index_types
    def test_others_are_those_that_are_not_one(self, matrix, index_type):
        found = nonzeros(matrix, index_type)
        others, expected = found.others, matrix[matrix > 1]
        np.testing.assert_array_equal(others.values, expected)
        assert torch.equal(found.values[others.index], others.values)
        assert torch.equal(found.columns[others.index], others.columns)
        tensor = draws(2, *matrix.shape)
        assert torch.equal(others.at(tensor), tensor[(..., *places(matrix > 1))])


class TestNonzeros:
    @matrices
    @index_types
    def test_they_are_those_of_the_matrix_in_order(self, matrix, index_type):
        found = nonzeros(matrix, index_type)
        rows, columns = places(matrix)
        assert found.shape == matrix.shape
        np.testing.assert_array_equal(found.values, matrix[np.nonzero(matrix)])
        np.testing.assert_array_equal(found.columns, columns)
        np.testing.assert_array_equal(found.positions, np.flatnonzero(matrix))
        np.testing.assert_array_equal(np.repeat(np.arange(len(matrix)), np.diff(found.offsets)), rows)

    @matrices
    @index_types
    def test_written_out_they_are_the_matrix(self, matrix, index_type):
        np.testing.assert_array_equal(nonzeros(matrix, index_type).dense(), matrix)

    @matrices
    @index_types
    def test_transposed_they_are_those_of_the_transposed_matrix(self, matrix, index_type):
        found, expected = nonzeros(matrix, index_type).transposed, nonzeros(matrix.T, index_type)
        assert found.shape == expected.shape
        for name in ("values", "columns", "positions", "offsets"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(found.transposed.dense(), matrix)

    @pytest.mark.parametrize("transposed_before", [False, True])
    def test_a_function_is_that_of_each_value(self, transposed_before):
        found, matrix = nonzeros(), torch.tensor(MATRICES["mixed"], dtype=torch.float64)
        if transposed_before:
            assert torch.equal(found.transposed.dense(), matrix.T)
        mapped = found.map(torch.log1p)
        assert torch.equal(mapped.dense(), matrix.log1p())
        assert torch.equal(mapped.transposed.dense(), matrix.T.log1p())
        torch.testing.assert_close(mapped.map(torch.exp).others.values, 1 + found.values)
        assert torch.equal(found.dense(), matrix)

    def test_a_function_of_values_does_not_keep_the_others_of_the_old(self):
        found = nonzeros()
        assert len(found.others.values) == 4
        halved = found.map(lambda values: values / 2)
        assert torch.equal(halved.others.values, torch.tensor([0.5, 1.5, 0.5, 0.5, 3.5, 2.0], dtype=torch.float64))
        assert torch.equal(halved.others.index, torch.tensor([1, 2, 3, 4, 5, 6]))

    def test_of_another_type_the_places_stay(self):
        found = nonzeros()
        assert found.others.values.dtype == torch.float64
        single = found.to(dtype=torch.float32)
        assert single.values.dtype == single.others.values.dtype == single.dense().dtype == torch.float32
        assert single.positions.dtype == found.positions.dtype
        assert torch.equal(single.dense().double(), found.dense())


class TestProduct:
    @matrices
    @index_types
    @pytest.mark.parametrize("width", [1, 3])
    def test_it_is_that_of_the_matrix_written_out(self, matrix, index_type, width):
        dense, found = draws(matrix.shape[1], width), nonzeros(matrix, index_type)
        torch.testing.assert_close(found @ dense, torch.tensor(matrix) @ dense, rtol=1e-14, atol=1e-14)
        back = draws(matrix.shape[0], width, seed=1)
        torch.testing.assert_close(found.transposed @ back, torch.tensor(matrix.T) @ back, rtol=1e-14, atol=1e-14)

    @pytest.mark.parametrize(
        "dense",
        [draws(3, COLUMNS).t(), draws(2 * COLUMNS, 3)[::2], draws(COLUMNS, 6)[:, ::2], draws(COLUMNS, 1).expand(-1, 3)],
        ids=["transposed", "every other row", "every other column", "expanded"],
    )
    def test_the_dense_matrix_may_lie_in_any_way(self, dense):
        expected = torch.tensor(MATRICES["mixed"], dtype=torch.float64) @ dense
        torch.testing.assert_close(nonzeros() @ dense, expected, rtol=1e-14, atol=1e-14)

    @matrices
    @index_types
    def test_gradients_are_those_of_the_matrix_written_out(self, matrix, index_type):
        dense, found = draws(matrix.shape[1], 3).requires_grad_(), nonzeros(matrix, index_type)
        weights = draws(3, matrix.shape[0], seed=1).t()
        (gradient,) = torch.autograd.grad((weights * (found @ dense)).sum(), dense)
        torch.testing.assert_close(gradient, torch.tensor(matrix.T) @ weights, rtol=1e-14, atol=1e-14)

    @matrices
    def test_gradcheck_to_second_order_and_forward_mode(self, matrix):
        dense = draws(matrix.shape[1], 2).requires_grad_()
        found = nonzeros(matrix)
        assert torch.autograd.gradcheck(found.__matmul__, dense, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda dense: (found @ dense).pow(3), dense)

    def test_a_gradient_that_is_not_wanted_is_not_recorded(self):
        assert not (nonzeros() @ draws(COLUMNS, 2)).requires_grad

    @pytest.mark.parametrize("in_dim", [0, 1, 2])
    def test_a_batch_of_products_is_each_of_them(self, in_dim):
        found, batch = nonzeros(), draws(3, COLUMNS, 2)
        assert found.transposed.shape == (COLUMNS, ROWS)
        moved = batch.movedim(0, in_dim)
        expected = torch.stack([found @ dense for dense in batch])
        torch.testing.assert_close(torch.func.vmap(found.__matmul__, in_dim)(moved), expected)

        def curved(dense):
            return (found @ dense).pow(3).sum()

        expected = torch.stack([torch.func.grad(curved)(dense) for dense in batch])
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(curved), in_dim)(moved), expected)

    def test_batches_of_batches(self):
        batch = draws(2, 3, COLUMNS, 2)
        expected = torch.tensor(MATRICES["mixed"], dtype=torch.float64) @ batch
        result = torch.func.vmap(torch.func.vmap(nonzeros().__matmul__))(batch)
        torch.testing.assert_close(result, expected, rtol=1e-14, atol=1e-14)

    def test_jacobians_in_both_modes_and_hessian(self):
        found, matrix, dense = nonzeros(), torch.tensor(MATRICES["mixed"], dtype=torch.float64), draws(COLUMNS, 2)
        value, tangent = torch.func.jvp(found.__matmul__, (dense,), (draws(COLUMNS, 2, seed=1),))
        torch.testing.assert_close((value, tangent), (matrix @ dense, matrix @ draws(COLUMNS, 2, seed=1)))
        expected = torch.func.jacrev(matrix.__matmul__)(dense)
        torch.testing.assert_close(torch.func.jacrev(found.__matmul__)(dense), expected)
        torch.testing.assert_close(torch.func.jacfwd(found.__matmul__)(dense), expected)
        hessians = [torch.func.hessian(lambda dense, by=by: (by @ dense).pow(3).sum())(dense) for by in (found, matrix)]
        torch.testing.assert_close(*hessians)


class TestCountTensor:
    @pytest.mark.parametrize("kind", [np.array, sp.csr_matrix, sp.csr_array])
    @matrices
    def test_counts_know_their_nonzeros_where_these_are_few(self, kind, matrix):
        counts = counts_tensor(kind(matrix))
        np.testing.assert_array_equal(counts, matrix)
        found = nonzeros_of(counts)
        assert (found is not None) == (np.count_nonzero(matrix) <= MOST * matrix.size)
        if found is not None:
            assert isinstance(counts, CountTensor)
            np.testing.assert_array_equal(found.dense(), matrix)

    @pytest.mark.parametrize(("nonzero", "known"), [(0, True), (14, True), (15, True), (16, False), (20, False)])
    @pytest.mark.parametrize("kind", [np.array, sp.csr_matrix])
    def test_they_know_none_where_too_many_are_not_zero(self, kind, nonzero, known):
        matrix = np.zeros((4, 5), np.float32)
        assert MOST * matrix.size == 15
        matrix.flat[:nonzero] = 2
        assert (nonzeros_of(counts_tensor(kind(matrix))) is not None) == known

    @index_types
    def test_zeros_order_and_repeats_of_what_is_stored_do_not_matter(self, index_type):
        columns = np.array([4, 1, 1, 0, 3, 2, 0], index_type)
        offsets = np.array([0, 3, 5, 5, 7], index_type)
        values = np.array([1.0, 2, 3, 6, 0, 8, 0])
        stored = sp.csr_matrix((values, columns, offsets), (ROWS, COLUMNS))
        expected = np.array([[0, 5, 0, 0, 1], [6, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 8, 0, 0]], float)
        counts = counts_tensor(stored)
        np.testing.assert_array_equal(counts, expected)
        found = nonzeros_of(counts)
        assert found.values.tolist() == [5, 1, 6, 8]
        assert found.columns.tolist() == [1, 4, 0, 2]
        assert found.positions.tolist() == [1, 4, 5, 17]
        assert found.offsets.tolist() == [0, 2, 3, 3, 4]

    def test_zeros_that_are_stored_do_not_count_as_nonzero(self):
        rows, columns = np.indices((ROWS, COLUMNS))
        values = np.zeros(ROWS * COLUMNS)
        values[3] = 2
        stored = sp.csr_matrix((values, (rows.ravel(), columns.ravel())), (ROWS, COLUMNS))
        assert len(nonzeros_of(counts_tensor(stored)).values) == 1

    def test_an_array_by_columns_is_the_same(self):
        matrix = np.asfortranarray(MATRICES["mixed"], float)
        counts = counts_tensor(matrix)
        np.testing.assert_array_equal(counts, matrix)
        np.testing.assert_array_equal(nonzeros_of(counts).dense(), matrix)

    def test_what_is_no_count_tensor_knows_nothing(self):
        assert nonzeros_of(None) is None
        assert nonzeros_of(torch.zeros(2, 3)) is None


class TestNetwork:
    @pytest.mark.parametrize("condition_dim", [0, 3])
    @pytest.mark.parametrize("hidden_dims", [[], [8], [8, 4]], ids=str)
    @pytest.mark.parametrize("norm", ["layer", "batch", "none"])
    @matrices
    def test_nonzeros_are_the_same_input(self, matrix, norm, hidden_dims, condition_dim):
        torch.manual_seed(0)
        rows, columns = matrix.shape
        if rows == 1 and norm == "batch":
            rows, matrix = 3, matrix.repeat(3, 0)
        network = MLP(columns, hidden_dims, condition_dim=condition_dim, norm=norm, dropout=0, activation="tanh")
        network.double()
        condition = draws(rows, 3).requires_grad_() if condition_dim else None
        wanted = [*network.parameters(), *([] if condition is None else [condition])]

        def evaluated(inputs):
            output = network(inputs, condition)
            weights = draws(*output.shape, seed=1)
            return output, *(torch.autograd.grad((weights * output).sum(), wanted) if wanted else ())

        found, expected = evaluated(nonzeros(matrix)), evaluated(torch.tensor(matrix))
        assert found[0].shape == (rows, network.output_dim)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("hidden_dims", [[], [8, 4]], ids=str)
    @pytest.mark.parametrize("lead", [(2,), (2, 3)], ids=str)
    def test_conditions_of_particles_are_broadcast(self, lead, hidden_dims):
        network = MLP(COLUMNS, hidden_dims, condition_dim=3, dropout=0).double()
        condition = draws(*lead, ROWS, 3)
        found, dense = nonzeros(), torch.tensor(MATRICES["mixed"], dtype=torch.float64)
        torch.testing.assert_close(network(found, condition), network(dense, condition))

    def test_a_condition_that_the_network_does_not_see_changes_nothing(self):
        network = MLP(COLUMNS, [4], dropout=0).double()
        assert torch.equal(network(nonzeros(), draws(ROWS, 2)), network(nonzeros()))

    def test_a_condition_of_another_width_is_refused(self):
        network = MLP(COLUMNS, [4], condition_dim=3).double()
        for condition in (None, draws(ROWS, 2)):
            with pytest.raises(ValueError, match="condition of width 3"):
                network(nonzeros(), condition)

    @pytest.mark.parametrize("shape", [(5, 3), (1, 7), (40, 2)], ids=str)
    def test_the_input_layer_starts_as_the_linear_layer_of_torch(self, shape):
        torch.manual_seed(3)
        layer, after = InputLayer(*shape), torch.rand(2)
        torch.manual_seed(3)
        linear, after_linear = nn.Linear(*shape), torch.rand(2)
        assert torch.equal(layer.weight, linear.weight.t())
        assert torch.equal(layer.bias, linear.bias)
        assert torch.equal(after, after_linear)
        assert layer.weight.is_contiguous()
        assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
        inputs = torch.rand(2, 6, shape[0])
        torch.testing.assert_close(layer(inputs, None), linear(inputs))
