"""Reading ahead: the next item is made while the one before is in use."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, each made in a thread of its own while the one before it is in use.

    An error comes where its item would have come. At most one item is made that is never used.

    Args:
        items: What makes the items when it is asked for the next.

    Example:
        >>> list(ahead(iter(range(3))))
        [0, 1, 2]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as maker:
        coming = maker.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = maker.submit(next, items, _END)
            yield item  # type: ignore[misc]
