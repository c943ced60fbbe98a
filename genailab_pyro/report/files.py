"""Text files that are either whole or not there."""

import os
import uuid
from pathlib import Path


def write_whole(path: str | Path, text: str) -> Path:
    """Write a text file in one step: a reader of the path sees the former file or the new one, never a part.

    Args:
        path: Where to write; folders that are missing are made, a file that is there is replaced.
        text: The content, written as UTF-8.

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
    path = Path(path)
    if path.is_dir():
        message = f"{path} is a folder; name the file to write in it"
        raise ValueError(message)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
