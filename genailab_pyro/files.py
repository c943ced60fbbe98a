"""Files that are either whole or not there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A name beside a path to write under; what is written takes the path's place when the block ends well.

    A reader of the path sees the former file or the new one, never a part.

    Args:
        path: Where the file shall be; folders that are missing are made, a file that is there is replaced.

    Raises:
        ValueError: If the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"expected a file to write, {path} is a folder; name the file to write in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of our own, for the permissions that any new file gets; those of tempfile are the writer's alone.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write a file in one step.

    Args:
        path: Where to write.
        content: Text, written as UTF-8, or bytes.

    Returns:
        The path.

    Raises:
        ValueError: If the path is a folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_whole(folder / "new" / "note.txt", "ELBO").read_text()
        'ELBO'
    """
    with whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def remove_parts(path: Path) -> None:
    """Remove what a process that was killed while it wrote this file has left beside it."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)
