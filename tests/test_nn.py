"""Declared modules, the multilayer perceptron, and the encoding of conditions."""

import copy
import json
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from genailab_pyro import MLP, Embedding, Minibatch, OneHot
from genailab_pyro.nn import ACTIVATIONS, NORMS, Declared, Dropout, Unconditioned, bounded, choose


class Part(Declared):
    """A declared module of plain arguments."""

    def __init__(self, width, *, scale=1.0, options=None):
        super().__init__()
        self.width = width
        self.scale = scale
        self.options = options
        self.weight = nn.Parameter(torch.randn(width))


class Whole(Declared):
    """A module of declared modules."""

    def __init__(self, first, second, others=()):
        super().__init__()
        self.first = first
        self.second = second
        self.others = nn.ModuleList(others)


class Passing(Part):
    """A subclass that passes on whatever it is given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def again(module):
    """The module declared once more, after a journey through JSON."""
    return Declared.declare(json.loads(json.dumps(module.declaration())))


def minibatch(conditions, continuous=None, dtype=torch.float32):
    conditions = torch.as_tensor(conditions).reshape(len(conditions), -1).long()
    num_cells = len(conditions)
    covariates = torch.zeros(num_cells, 0) if continuous is None else torch.as_tensor(continuous)
    library = torch.ones(num_cells, dtype=dtype)
    return Minibatch(None, conditions, covariates.to(dtype), library, torch.arange(num_cells), num_cells)


class TestDeclared:
    def test_arguments_survive_the_journey_through_json(self):
        part = again(Part(3, scale=0.1, options={"a": [1, None, "b"], "c": True}))
        assert (part.width, part.scale, part.options) == (3, 0.1, {"a": [1, None, "b"], "c": True})

    def test_nested_parts_are_declared_too(self):
        whole = again(Whole(Part(2), Part(3), others=[Part(4), Part(5)]))
        widths = [whole.first.width, whole.second.width, *(part.width for part in whole.others)]
        assert widths == [2, 3, 4, 5]

    def test_a_part_shared_by_two_modules_stays_shared(self):
        part = Part(2)
        whole = again(Whole(part, Whole(Part(3), part), others=[part]))
        assert whole.first is whole.second.second is whole.others[0]
        assert whole.first is not whole.second.first

    def test_two_equal_parts_stay_two(self):
        whole = again(Whole(Part(2), Part(2)))
        assert whole.first is not whole.second

    def test_arguments_given_by_position_to_a_passing_constructor_survive(self):
        part = again(Passing(3, scale=0.5))
        assert (type(part), part.width, part.scale) == (Passing, 3, 0.5)
        assert again(Whole(Passing(3), Passing(width=4))).second.width == 4

    def test_numpy_numbers_are_written_as_plain_ones(self):
        part = again(Part(np.int64(3), scale=np.float32(0.5)))
        assert (type(part.width), part.width, type(part.scale), part.scale) == (int, 3, float, 0.5)

    @pytest.mark.parametrize("journey", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    def test_a_copy_keeps_its_declaration_and_its_weights(self, journey):
        part = Part(2)
        whole = Whole(part, part)
        copied = journey(whole)
        assert copied.declaration() == whole.declaration()
        assert copied.first is copied.second is not part
        torch.testing.assert_close(copied.first.weight, part.weight)

    def test_the_declaration_says_where_the_class_is(self):
        declaration = MLP(3, [2], dropout=0.2).declaration()
        assert declaration == {
            "class": "genailab_pyro.nn:MLP",
            "arguments": {"input_dim": 3, "hidden_dims": [2], "dropout": 0.2},
            "part": 0,
        }

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.zeros(2), "got Tensor; pass its .tolist()"),
            (np.zeros(2), "got ndarray; pass its .tolist()"),
            (torch.relu, "got builtin_function_or_method; pass a name that the class looks up"),
            ({1, 2}, "got set; pass what it is made of as a list"),
        ],
    )
    @pytest.mark.parametrize("wrapped", [lambda value: value, lambda value: {"a": [value]}])
    def test_an_argument_that_cannot_be_written_is_named_before_anything_is_trained(self, value, message, wrapped):
        with pytest.raises(TypeError, match=re.escape("expected Part(options=) to be") + ".*" + re.escape(message)):
            Part(2, options=wrapped(value))

    def test_a_module_that_is_not_declared_is_used_but_not_saved(self):
        whole = Whole(Part(2), nn.Linear(2, 2))
        message = r"expected Whole\(second=\) to be .*got Linear; derive it from genailab_pyro.nn.Declared"
        with pytest.raises(TypeError, match=message):
            whole.declaration()

    def test_an_argument_that_has_no_name_is_refused_too(self):
        with pytest.raises(TypeError, match=r"expected an argument of Passing to be .*got function; pass a name"):
            Passing(lambda: 3)

    def test_arguments_that_the_constructor_does_not_take_are_its_own_to_refuse(self):
        with pytest.raises(TypeError, match=r"Part.__init__\(\) got an unexpected keyword argument 'wide'"):
            Part(2, wide=lambda: 3)

    def test_a_class_of_a_notebook_is_saved_with_a_warning_and_read_where_it_is_defined(self, monkeypatch):
        class Notebook(Part):
            """A part defined in a cell of a notebook."""

        Notebook.__module__, Notebook.__qualname__ = "__main__", "Notebook"
        whole = Whole(Notebook(3), Whole(Notebook(2), Part(2)))
        with pytest.warns(UserWarning, match="^Notebook is of this notebook or script: .*put it in a file of its own"):
            declaration = whole.declaration()
        with pytest.raises(ValueError, match=r"got '__main__:Notebook'.*if it is of a notebook, define it there"):
            Declared.declare(declaration)
        monkeypatch.setattr(sys.modules["__main__"], "Notebook", Notebook, raising=False)
        assert Declared.declare(declaration).second.first.width == 2

    def test_a_class_inside_a_function_is_refused(self):
        class Hidden(Part):
            pass

        with pytest.raises(TypeError, match="Hidden, defined inside a function; define it at the top"):
            Hidden(2).declaration()

    @pytest.mark.parametrize(
        ("declaration", "message"),
        [
            ({"class": "no_such_module:Part", "arguments": {}, "part": 0}, "put its file on the Python path"),
            ({"class": "genailab_pyro.nn:Missing", "arguments": {}, "part": 0}, "got 'genailab_pyro.nn:Missing'"),
            ({"class": "builtins:dict", "arguments": {}, "part": 0}, "subclass of genailab_pyro.nn.Declared"),
            ({"class": "torch.nn:Linear", "arguments": {}, "part": 0}, "subclass of genailab_pyro.nn.Declared"),
            ({"class": "genailab_pyro.nn:MLP", "part": 0}, "got 'genailab_pyro.nn:MLP'"),
            ({"class": "genailab_pyro.nn:Unconditioned", "arguments": {}}, "'part'"),
            ({"arguments": {}, "part": 0}, "got None"),
            ({"shared": 3}, "expected the declaration"),
        ],
    )
    def test_a_malformed_declaration_is_refused(self, declaration, message):
        with pytest.raises(ValueError, match=message):
            Declared.declare(declaration)


class TestMLP:
    def test_leading_shape_is_kept_and_the_condition_is_broadcast_over_particles(self):
        network = MLP(3, [8, 4], condition_dim=2, dropout=0.0)
        inputs, condition = torch.randn(5, 7, 3), torch.randn(7, 2)
        features = network(inputs, condition)
        assert features.shape == (5, 7, 4)
        for particle in range(5):
            torch.testing.assert_close(features[particle], network(inputs[particle], condition))

    def test_the_condition_matters(self):
        network = MLP(3, [8], condition_dim=2, dropout=0.0)
        inputs = torch.randn(1, 3)
        assert not torch.equal(network(inputs, torch.zeros(1, 2)), network(inputs, torch.ones(1, 2)))

    def test_without_hidden_widths_it_is_the_identity_beside_the_condition(self):
        inputs, condition = torch.randn(4, 3), torch.randn(4, 2)
        torch.testing.assert_close(MLP(3, [])(inputs), inputs)
        network = MLP(3, [], condition_dim=2)
        torch.testing.assert_close(network(inputs, condition), torch.cat([inputs, condition], -1))
        assert network.output_dim == 5

    @pytest.mark.parametrize("norm", list(NORMS))
    @pytest.mark.parametrize("activation", list(ACTIVATIONS))
    def test_every_norm_and_activation_takes_particles(self, norm, activation):
        features = MLP(3, [4], norm=norm, activation=activation)(torch.randn(2, 5, 3))
        assert features.shape == (2, 5, 4)
        assert torch.isfinite(features).all()

    def test_dropout_is_there_in_training_only(self):
        network, inputs = MLP(3, [400], dropout=0.5, norm="none"), torch.ones(1, 3)
        dropped = (network.train()(inputs) == 0).float().mean() - (network.eval()(inputs) == 0).float().mean()
        assert 0.1 < dropped < 0.4
        torch.testing.assert_close(network(inputs), network(inputs))

    def test_dropout_keeps_the_mean_and_drops_as_often_as_it_says(self):
        dropout, kept = Dropout(0.3).train(), 0.7
        values = torch.full((10_000,), 2.0, requires_grad=True)
        torch.manual_seed(0)
        result = dropout(values)
        assert set(result.unique().tolist()) == {0.0, torch.tensor(2.0).div(kept).item()}
        standard_error = (kept * (1 - kept) / len(values)) ** 0.5
        assert abs((result > 0).float().mean().item() - kept) < 5 * standard_error
        (gradient,) = torch.autograd.grad(result.sum(), values)
        torch.testing.assert_close(gradient, result.detach() / 2)
        assert Dropout(0.0).train()(values) is values

    @pytest.mark.parametrize(("condition", "got"), [(None, "got none"), (torch.zeros(4, 3), "got one of width 3")])
    def test_a_condition_that_does_not_fit_is_refused(self, condition, got):
        with pytest.raises(ValueError, match=f"expected a condition of width 2, {got}"):
            MLP(3, [4], condition_dim=2)(torch.zeros(4, 3), condition)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"input_dim": 0, "hidden_dims": [4]}, "widths of at least one, got input_dim=0"),
            ({"input_dim": 0, "hidden_dims": [4], "condition_dim": 3}, "widths of at least one"),
            ({"input_dim": 3, "hidden_dims": [4, 0]}, r"hidden_dims=\[4, 0\]"),
            ({"input_dim": 3, "hidden_dims": [], "condition_dim": -1}, "condition_dim=-1"),
            ({"input_dim": 3, "hidden_dims": [4], "dropout": 1.0}, r"in \[0, 1\), got 1.0"),
            ({"input_dim": 3, "hidden_dims": [4], "norm": "group"}, "'layer', 'batch', 'none', got 'group'"),
            ({"input_dim": 3, "hidden_dims": [], "activation": "elu"}, "'relu', 'gelu', 'tanh', got 'elu'"),
        ],
    )
    def test_what_cannot_work_is_refused_at_once(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MLP(**arguments)


class TestBounded:
    def test_it_is_the_hyperbolic_tangent(self):
        values = torch.linspace(-60, 60, 200, dtype=torch.float64, requires_grad=True)
        result, expected = bounded(values, 10.0), 10 * torch.tanh(values / 10)
        torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)
        found, wanted = (torch.autograd.grad(item.sum(), values)[0] for item in (result, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)

    def test_its_derivatives_of_both_orders_are_right_in_both_directions(self):
        values = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: bounded(x, 2.0), values, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x: bounded(x, 2.0), values)

    def test_it_stays_within_the_bound(self):
        assert torch.equal(bounded(torch.tensor([-1e30, 0.0, 1e30]), 10.0), torch.tensor([-10.0, 0.0, 10.0]))

    def test_each_of_a_batch_is_bounded(self):
        values = torch.randn(4, 3, dtype=torch.float64)
        torch.testing.assert_close(torch.func.vmap(lambda x: bounded(x, 2.0))(values), bounded(values, 2.0))


class TestConditions:
    def test_one_hot_puts_indicators_and_covariates_side_by_side(self):
        encoding = OneHot([2, 3], continuous_dim=1)
        vectors = encoding(minibatch([[0, 2], [1, 0]], [[0.5], [-1.0]]))
        expected = torch.tensor([[1, 0, 0, 0, 1, 0.5], [0, 1, 1, 0, 0, -1.0]])
        torch.testing.assert_close(vectors, expected)
        assert encoding.output_dim == 6

    def test_embedding_looks_up_a_vector_per_level(self):
        encoding = Embedding([2, 3], 4, continuous_dim=1)
        vectors = encoding(minibatch([[0, 2], [1, 0]], [[0.5], [-1.0]]))
        assert vectors.shape == (2, encoding.output_dim) == (2, 9)
        torch.testing.assert_close(vectors[0, :4], encoding.tables[0].weight[0])
        torch.testing.assert_close(vectors[0, 4:8], encoding.tables[1].weight[2])
        torch.testing.assert_close(vectors[:, 8], torch.tensor([0.5, -1.0]))

    def test_no_condition_has_width_zero_whatever_the_cells_have(self):
        assert Unconditioned()(minibatch([[0, 2], [1, 0]], [[0.5], [-1.0]])).shape == (2, 0)
        assert OneHot()(minibatch([[], []])).shape == (2, 0)

    @pytest.mark.parametrize("encoding", [OneHot([2]), Embedding([2], 3).double(), Unconditioned()])
    def test_vectors_have_the_precision_of_the_minibatch(self, encoding):
        assert encoding(minibatch([[0], [1]], dtype=torch.float64)).dtype == torch.float64

    @pytest.mark.parametrize("encoding", [OneHot([2, 3]), Embedding([2, 3], 4)])
    def test_cells_with_another_number_of_conditions_are_refused(self, encoding):
        message = r"expected cells with 2 categorical condition\(s\), the minibatch has 1; register the cells"
        with pytest.raises(ValueError, match=message):
            encoding(minibatch([[0], [1]]))


@pytest.mark.parametrize("name", ["layr", None, ["layer"]])
def test_a_name_that_is_not_in_a_table_is_answered_with_those_that_are(name):
    with pytest.raises(ValueError, match="expected norm to be one of 'layer', 'batch', 'none', got"):
        choose(NORMS, name, "norm")
