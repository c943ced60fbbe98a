"""Asks the parts of a VAE one by one, and says of an answer that cannot be used whose it is and what is missing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CALLS = {
    "prior": "prior(condition)",
    "decoder": "decoder(z, condition)",
    "likelihood": "likelihood(features, minibatch)",
    "encoder": "encoder(minibatch), or encoder(minibatch, upper) below an upper latent",
    "prior of the upper latent": "upper.prior(condition)",
    "posterior of the upper latent": "upper.posterior(minibatch)",
    "head": "head(z, minibatch, upper)",
}
"""How a VAE calls each of its parts."""


class CompositionError(ValueError):
    """Parts of a VAE that do not go together, or do not go with the cells; the message names them."""


def kind_of(part: Any) -> str:
    """The class of a part, or of the one that a method belongs to."""
    return type(getattr(part, "__self__", part)).__name__


def asked(role: str, part: Callable[..., Any], *arguments: Any, seen: str = "the cells") -> Any:
    """What a part answers.

    Args:
        role: A key of `CALLS`.
        part: What is called.
        arguments: What it is called with.
        seen: The arguments in words.

    Raises:
        CompositionError: If it cannot be called so, or fails on the widths that it is given.
    """
    name = kind_of(part)
    try:
        return part(*arguments)
    except NotImplementedError as error:
        method = getattr(part, "__name__", "forward")
        raise CompositionError(
            f"expected the {role} {name} to answer {CALLS[role]}, got {str(error) or 'nothing'}; define {method}() in "
            "its class"
        ) from error
    except TypeError as error:
        raise CompositionError(f"expected the {role} {name} to answer {CALLS[role]}, got: {error}") from error
    except (RuntimeError, IndexError) as error:
        reason = str(error).split("\n")[0]
        fix = "declare it with these widths"
        if role == "likelihood" and "size of tensor" in reason:
            fix += ", and put what is one number per cell, such as the library, beside the genes by .unsqueeze(-1)"
        raise CompositionError(f"expected the {role} {name} to take {seen}, got: {reason}; {fix}") from error


def distribution_of(role: str, part: Callable[..., Any], *arguments: Any, seen: str = "the cells") -> Any:
    """The distribution that a part answers with; as `asked`, and its answer must be one with parameters it can have.

    Raises:
        CompositionError: If it answers with something else.
    """
    found = asked(role, part, *arguments, seen=seen)
    if not isinstance(found, torch.distributions.Distribution):
        raise CompositionError(
            f"expected the {role} {kind_of(part)} to return a Pyro distribution, got {type(found).__name__}; return "
            f"one from {getattr(part, '__name__', 'forward')}()"
        )
    _check_parameters(role, kind_of(part), found)
    return found


def _check_parameters(role: str, name: str, distribution: Any) -> None:
    """Refuse parameters outside their constraints; only tensors that are held, not those that are derived."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    try:
        constraints = distribution.arg_constraints
    except NotImplementedError:  # a distribution of a user need not say
        return
    for parameter, constraint in constraints.items():
        value = vars(distribution).get(parameter)
        if not isinstance(value, Tensor) or torch.distributions.constraints.is_dependent(constraint):
            continue
        if constraint.check(value).all():
            continue
        raise CompositionError(
            f"expected the {role} {name} to give a {kind_of(distribution)} whose {parameter} is {spoken(constraint)}, "
            f"got values from {value.min():g} to {value.max():g}; put them through softplus, exp or softmax"
        )


def check_support(role: str, name: str, distribution: Any, observed: Tensor) -> None:
    """Refuse observed values that a distribution is not over.

    Raises:
        CompositionError: If there are some.
    """
    support = support_of(role, distribution)
    if not support.check(observed).all():
        raise CompositionError(
            f"expected observed values within the support of the {role} {name}, {spoken(support)}, got values from "
            f"{observed.min():g} to {observed.max():g}; override observed() to give the values that it is over"
            + (", and set scale to what they are" if role == "likelihood" else "")
        )


def support_of(role: str, distribution: Any) -> Any:
    """The values that a distribution is over.

    Raises:
        CompositionError: If it does not say.
    """
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):
        raise CompositionError(
            f"expected the {role} to say which values it is over, got {kind_of(distribution)} without a support; set "
            "support to one of pyro.distributions.constraints, such as real_vector"
        ) from None


def spoken(support: Any) -> str:
    """A support as pyro.distributions.constraints spells it, of one element of an event."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return str(support)
