"""The number of torch's threads, on which the last bits of a fit depend."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_kept() -> Iterator[None]:
    """Leave torch the number of threads that it had: numba, which scanpy calls, sets it for the whole process.

    Example:
        >>> before = torch.get_num_threads()
        >>> with threads_kept():
        ...     torch.set_num_threads(before + 1)
        >>> torch.get_num_threads() == before
        True
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
