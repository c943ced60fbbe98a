"""Memory that is freed in one step and asked for again in the next."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM, _MAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_LARGEST_MAP = 1 << 25  # the most that glibc takes


@contextmanager
def memory_kept() -> Iterator[None]:
    """Let the C library keep up to a gigabyte of what is freed, where it is glibc.

    Left alone, glibc returns the intermediate results of a training step to the system and asks for them again in the
    next, page by page. How often is a matter of chance; it can double the time of a step. Afterwards glibc keeps 64 MB.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_MAP, _LARGEST_MAP)
    library.mallopt(_TRIM, 1 << 30)
    try:
        yield
    finally:
        library.mallopt(_TRIM, 2 * _LARGEST_MAP)
