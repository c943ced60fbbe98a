"""A condition with more levels than it was declared with is answered with both numbers."""

import pytest
import torch

from genailab_pyro.nn import Embedding, OneHot
from genailab_pyro.types import Minibatch

CODES = torch.tensor([[0, 2], [1, 0]])


def minibatch(codes):
    size = len(codes)
    return Minibatch(None, codes, torch.zeros(size, 0), torch.ones(size), torch.arange(size), size)


@pytest.mark.parametrize("declare", [OneHot, lambda levels: Embedding(levels, 2)])
@pytest.mark.parametrize("levels", [[1, 3], [2, 2]])
def test_levels_that_were_not_declared_are_refused(declare, levels):
    assert declare([2, 3])(minibatch(CODES)).shape[0] == 2
    with pytest.raises(ValueError, match=r"got at least \[2, 3\]; use levels=\[len\(item.levels\) for") as refused:
        declare(levels)(minibatch(CODES))
    assert str(refused.value).startswith(f"expected conditions of {levels} level(s)")


class Broken(OneHot):
    """An encoding whose own error has nothing to do with levels."""

    def encode(self, minibatch):
        return [torch.zeros(2, 3) @ torch.zeros(2, 3)]


def test_another_error_of_an_encoding_is_left_as_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Broken([2, 3])(minibatch(CODES))
