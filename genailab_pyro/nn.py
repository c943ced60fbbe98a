"""Building blocks of the networks: declared modules, the multilayer perceptron, and the encoding of conditions."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import islice, pairwise
from numbers import Integral, Real
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from genailab_pyro.sparse import Nonzeros, signed
from genailab_pyro.types import Minibatch

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
    "none": lambda width: nn.Identity(),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def choose(table: dict[str, Any], name: str, what: str) -> Any:
    """The entry of a table under a name; a name that is not there is answered with those that are.

    Raises:
        ValueError: If the table has no such entry.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        known = ", ".join(repr(key) for key in table)
        raise ValueError(f"expected {what} to be one of {known}, got {name!r}") from None


class Declared(nn.Module):
    """A module that remembers the arguments it was declared with, so that it is saved without a pickle.

    Arguments must be numbers, strings, None, lists, tuples or mappings of these, or other declared modules. A class is
    saved by its import path: one of a notebook is trained and used like any other, and its fit is read where the class
    is defined again.

    Raises:
        TypeError: If an argument can never be written, such as a function or a tensor. (A torch module that is not
            declared is refused when it is saved.)
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments as they came; they are written only when the module is saved."""
        module = super().__new__(cls)
        module.__dict__["_arguments"] = (args, kwargs)
        try:
            bound = module._bound()
        except TypeError:
            return module  # a copy, which gets its arguments later, or arguments that its constructor refuses
        _written_arguments(cls, bound, lambda part, where: id(part))
        return module

    def _bound(self) -> inspect.BoundArguments:
        """The arguments by the names that the constructor has for them."""
        return inspect.signature(type(self).__init__).bind(self, *self._arguments[0], **self._arguments[1])

    def declaration(self, _seen: dict[int, int] | None = None) -> dict[str, Any]:
        """The import path and arguments of this module as plain JSON types; parts shared by two modules stay shared.

        Returns:
            ``{"class": "package.module:Name", "arguments": {...}, "part": number}``, nested; where the constructor
            takes ``*arguments``, those that were given by position are under ``"positional"``.

        Warns:
            UserWarning: If the class, or that of a part, is defined in the notebook or script that runs.

        Raises:
            TypeError: If an argument cannot be written as JSON, or the class cannot be imported by its name.
        """
        if _seen is None:
            self._warn_of_main()
        seen = {} if _seen is None else _seen
        if id(self) in seen:
            return {"shared": seen[id(self)]}
        seen[id(self)] = number = len(seen)
        cls = type(self)
        if "<locals>" in cls.__qualname__:
            raise TypeError(
                f"expected a class that can be imported, got {cls.__qualname__}, defined inside a function; "
                "define it at the top of a module"
            )

        def declared(part: nn.Module, where: str) -> dict[str, Any]:
            if not isinstance(part, Declared):
                raise _unwritten(part, where)
            return part.declaration(seen)

        written = _written_arguments(cls, self._bound(), declared)
        return {"class": f"{cls.__module__}:{cls.__qualname__}", **written, "part": number}

    def _warn_of_main(self) -> None:
        parts = [part for part in self.modules() if isinstance(part, Declared)]
        names = sorted({type(part).__qualname__ for part in parts if type(part).__module__ == "__main__"})
        if names:
            warnings.warn(
                f"{', '.join(names)} is of this notebook or script: what is saved can be loaded only where it is "
                "defined again; put it in a file of its own, and import it from there",
                stacklevel=3,
            )

    @staticmethod
    def declare(declaration: dict[str, Any], _parts: dict[int, "Declared"] | None = None) -> "Declared":
        """Build a module from its `declaration`, with weights as its constructor draws them.

        Raises:
            ValueError: If the declaration is malformed, or names something that is not a declared module.
        """
        parts = {} if _parts is None else _parts
        try:
            if "shared" in declaration:
                return parts[declaration["shared"]]
            module_name, _, qualname = declaration["class"].partition(":")
            target: Any = import_module(module_name)
            for attribute in qualname.split("."):
                target = getattr(target, attribute)
            positional = [_read(value, parts) for value in declaration.get("positional", ())]
            arguments = {name: _read(value, parts) for name, value in declaration["arguments"].items()}
            number = declaration["part"]
        except (KeyError, TypeError, AttributeError, ImportError) as error:
            raise ValueError(
                f"expected the declaration of an importable module, got {declaration.get('class')!r} ({error}); "
                "if it is a class of your own, put its file on the Python path; if it is of a notebook, define it there"
            ) from error
        if not (isinstance(target, type) and issubclass(target, Declared)):
            raise ValueError(f"expected a subclass of genailab_pyro.nn.Declared, got {declaration['class']!r}")
        parts[number] = module = target(*positional, **arguments)
        return module


def _split(bound: inspect.BoundArguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a constructor to be passed by position, itself left out, and those to be passed by name."""
    kinds = {name: bound.signature.parameters[name].kind for name in bound.arguments}
    if inspect.Parameter.VAR_POSITIONAL in kinds.values():
        return bound.args[1:], bound.kwargs
    named: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        named |= value if kinds[name] is inspect.Parameter.VAR_KEYWORD else {name: value}
    return (), named


def _written_arguments(
    cls: type, bound: inspect.BoundArguments, write: Callable[[nn.Module, str], Any]
) -> dict[str, Sequence[Any] | dict[str, Any]]:
    """The arguments of a constructor as plain JSON types, those by position only where they must be."""
    positional, named = _split(bound)
    written: dict[str, Sequence[Any] | dict[str, Any]] = {}
    if positional:
        written["positional"] = [_written(value, f"an argument of {cls.__name__}", write) for value in positional]
    written["arguments"] = {name: _written(value, f"{cls.__name__}({name}=)", write) for name, value in named.items()}
    return written


def _written(value: Any, where: str, write: Callable[[nn.Module, str], Any]) -> Any:
    if isinstance(value, nn.Module):
        return write(value, where)
    if isinstance(value, dict):
        return {"mapping": {str(key): _written(item, where, write) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_written(item, where, write) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Integral, Real)):  # numpy's numbers, which JSON does not know
        return int(value) if isinstance(value, Integral) else float(value)
    raise _unwritten(value, where)


def _unwritten(value: Any, where: str) -> TypeError:
    """That an argument cannot be written, with what to pass in its place."""
    fix = "pass its .tolist()" if hasattr(value, "tolist") else "pass what it is made of as a list"
    if isinstance(value, nn.Module):
        fix = "derive it from genailab_pyro.nn.Declared"
    elif callable(value):
        fix = "pass a name that the class looks up, or make it a module derived from genailab_pyro.nn.Declared"
    return TypeError(
        f"expected {where} to be a number, a string, None, a list, a tuple, a mapping or a Declared module, so that it "
        f"can be saved, got {type(value).__name__}; {fix}"
    )


def _read(value: Any, parts: dict[int, Declared]) -> Any:
    if isinstance(value, dict):
        if "mapping" in value:
            return {key: _read(item, parts) for key, item in value["mapping"].items()}
        return Declared.declare(value, parts)
    if isinstance(value, list):
        return [_read(item, parts) for item in value]
    return value


def beside(first: Float[Tensor, "*rows one"], second: Float[Tensor, "*#rows two"]) -> Float[Tensor, "*rows both"]:
    """Two tensors put side by side in their last dimension, broadcast over the others."""
    shape = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat([first.expand(*shape, -1), second.expand(*shape, -1)], dim=-1)


class Dropout(nn.Dropout):
    """Torch's dropout by uniform draws, which on a CPU take half as long as its own Bernoulli draws."""

    def forward(self, values: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """In training, zero with the probability ``p`` and otherwise the value, divided by what is kept."""
        if not self.training or self.p == 0:
            return values
        return values * (torch.rand_like(values) >= self.p).to(values.dtype).div_(1 - self.p)


class _Bounded(torch.autograd.Function):
    """``bound * tanh(x / bound)``, by the sigmoid, which is several times as fast, and written in place."""

    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(values: Tensor, bound: float) -> Tensor:
        return (values * (2 / bound)).sigmoid_().mul_(2 * bound).sub_(bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.bound = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def _along(ctx: Any, direction: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return torch.addcmul(direction, direction * output, output, value=-(ctx.bound**-2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Bounded._along(ctx, gradient), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Bounded._along(ctx, tangent)


def bounded(values: Float[Tensor, "*shape"], bound: float) -> Float[Tensor, "*shape"]:
    """The values where they are small, and never beyond the bound on either side: ``bound * tanh(values / bound)``."""
    if has_torch_function_unary(values):
        return handle_torch_function(bounded, (values,), values, bound)
    return _Bounded.apply(values, bound)


class InputLayer(nn.Module):
    """A linear layer on inputs beside a condition, whose weights lie input by input.

    So a product with inputs that are mostly zero reads the weights of the others alone. It starts as torch's own
    linear layer does, of the same draws.

    Attributes:
        in_features: Number of inputs, those of the condition included.
        out_features: Number of outputs.
        weight: Shape ``[inputs, outputs]``, those of the condition last.
        bias: Shape ``[outputs]``.

    Args:
        in_features: Width of the inputs and the condition together.
        out_features: Width of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        drawn = nn.Linear(in_features, out_features)
        self.weight = nn.Parameter(drawn.weight.detach().t().contiguous())
        self.bias = drawn.bias

    def forward(
        self, inputs: Float[Tensor, "*rows input"] | Nonzeros, condition: Float[Tensor, "*#rows condition"] | None
    ) -> Float[Tensor, "*rows output"]:
        """Map inputs and their condition to the output."""
        if not isinstance(inputs, Nonzeros):
            both = inputs if condition is None else beside(inputs, condition)
            return nn.functional.linear(both, self.weight.t(), self.bias)
        if condition is None:
            return inputs @ self.weight + self.bias
        of_inputs, of_condition = self.weight.split([inputs.shape[1], condition.shape[-1]])
        return inputs @ of_inputs + nn.functional.linear(condition, of_condition.t(), self.bias)


class MLP(Declared):
    """Multilayer perceptron: linear, norm, activation, dropout for each hidden width.

    Without hidden widths it is the identity on ``[input, condition]``: a likelihood's linear head on it then makes
    a linear decoder with interpretable loadings.

    Args:
        input_dim: Width of the input.
        hidden_dims: Widths of the layers; the last is the width of the output.
        condition_dim: Width of the condition that is put beside the input.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
        activation: ``"relu"``, ``"gelu"`` or ``"tanh"``.

    Raises:
        ValueError: If a width is below one, the dropout outside [0, 1), or a name unknown.

    Example:
        >>> MLP(10, [128])(torch.zeros(3, 10)).shape
        torch.Size([3, 128])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        *,
        condition_dim: int = 0,
        dropout: float = 0.1,
        norm: str = "layer",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        widths = [input_dim + condition_dim, *hidden_dims]
        if input_dim < 1 or condition_dim < 0 or min(widths) < 1:
            raise ValueError(
                f"expected widths of at least one, got input_dim={input_dim}, hidden_dims={list(hidden_dims)}, "
                f"condition_dim={condition_dim}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"expected a dropout probability in [0, 1), got {dropout}")
        self.condition_dim = condition_dim
        self.output_dim = widths[-1]
        make_norm, make_activation = choose(NORMS, norm, "norm"), choose(ACTIVATIONS, activation, "activation")
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            linear = nn.Linear(before, after) if layers else InputLayer(before, after)
            layers += [linear, make_norm(after), make_activation(), Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(
        self,
        inputs: Float[Tensor, "*rows input"] | Nonzeros,
        condition: Float[Tensor, "*#rows condition"] | None = None,
    ) -> Float[Tensor, "*rows output"]:
        """Map inputs of any leading shape to features; the condition is broadcast over particles.

        Of inputs that are mostly zero, shape ``[rows, input]``, the non-zero values are enough.
        """
        if not self.condition_dim:
            condition = None
        elif condition is None or condition.shape[-1] != self.condition_dim:
            got = "none" if condition is None else f"one of width {condition.shape[-1]}"
            raise ValueError(f"expected a condition of width {self.condition_dim}, got {got}")
        if not self.layers:
            values = inputs.dense() if isinstance(inputs, Nonzeros) else inputs
            return values if condition is None else beside(values, condition)
        values = self.layers[0](inputs, condition)
        # BatchNorm1d knows only [rows, width]; flattening changes nothing for the other layers.
        rows = values.reshape(-1, values.shape[-1])
        for layer in islice(self.layers, 1, None):
            rows = layer(rows)
        return rows.reshape(*values.shape[:-1], self.output_dim)


class ConditionEncoding(Declared):
    """Turns the conditions of a minibatch into one vector per cell.

    Attributes:
        levels: Number of levels of each categorical condition.
        output_dim: Width of the vector.
    """

    levels: tuple[int, ...]
    output_dim: int

    def forward(self, minibatch: Minibatch) -> Float[Tensor, "cells condition"]:
        """The condition vector of each cell."""
        if minibatch.conditions.shape[-1] != len(self.levels):
            raise ValueError(
                f"expected cells with {len(self.levels)} categorical condition(s), the minibatch has "
                f"{minibatch.conditions.shape[-1]}; register the cells with those that the model was declared with"
            )
        try:
            return torch.cat([*self.encode(minibatch), minibatch.continuous], dim=-1)
        except (IndexError, RuntimeError):
            seen = [int(largest) + 1 for largest in minibatch.conditions.amax(0)]
            if all(number <= declared for number, declared in zip(seen, self.levels, strict=True)):
                raise
            raise ValueError(
                f"expected conditions of {list(self.levels)} level(s), as they were declared, got at least {seen}; use "
                "levels=[len(item.levels) for item in cells.registration.conditions]"
            ) from None

    def encode(self, minibatch: Minibatch) -> list[Float[Tensor, "cells width"]]:
        """One block of columns for each categorical condition."""
        raise NotImplementedError


class Unconditioned(ConditionEncoding):
    """No condition: a vector of width zero, whatever the cells' conditions are."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = ()
        self.output_dim = 0

    def forward(self, minibatch: Minibatch) -> Float[Tensor, "cells 0"]:
        """A vector of width zero for each cell."""
        return minibatch.continuous[:, :0]


class OneHot(ConditionEncoding):
    """Categorical conditions as indicator vectors, continuous covariates as they are.

    Args:
        levels: Number of levels of each categorical condition.
        continuous_dim: Number of continuous covariates.
    """

    def __init__(self, levels: Sequence[int] = (), continuous_dim: int = 0) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.output_dim = sum(self.levels) + continuous_dim

    def encode(self, minibatch: Minibatch) -> list[Float[Tensor, "cells width"]]:
        """Indicator vectors."""
        codes = zip(minibatch.conditions.unbind(1), self.levels, strict=True)
        return [nn.functional.one_hot(code, number).to(minibatch.library.dtype) for code, number in codes]


class Embedding(ConditionEncoding):
    """Categorical conditions as learned vectors, continuous covariates as they are.

    Args:
        levels: Number of levels of each categorical condition.
        embedding_dim: Width of the vector of each categorical condition.
        continuous_dim: Number of continuous covariates.
    """

    def __init__(self, levels: Sequence[int], embedding_dim: int, continuous_dim: int = 0) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.output_dim = len(self.levels) * embedding_dim + continuous_dim
        self.tables = nn.ModuleList(nn.Embedding(n, embedding_dim) for n in self.levels)

    def encode(self, minibatch: Minibatch) -> list[Float[Tensor, "cells width"]]:
        """Rows of the embedding tables."""
        return [table(minibatch.conditions[:, i]) for i, table in enumerate(self.tables)]
