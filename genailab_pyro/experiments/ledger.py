"""What a long experiment has measured so far, in a file that outlives it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genailab_pyro.train.storage import read_json, write_json


class Ledger:
    """Measurements by name; each is written down as soon as it is made, and not made again.

    Args:
        path: The file.
        of: What is measured, in plain JSON types; measurements of something else are not taken for these.

    Raises:
        ValueError: If the file holds measurements of something else, or is damaged.
    """

    def __init__(self, path: Path, of: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"of": dict(of), "measured": {}}
        if not path.exists():
            return
        found = read_json(path)
        before, measured = found.get("of"), found.get("measured")
        if not isinstance(before, dict) or not isinstance(measured, dict):
            raise ValueError(f"expected measurements in {path}, got something else; the file is damaged")
        differ = [name for name, value in of.items() if _json(before.get(name)) != _json(value)]
        if differ:
            raise ValueError(
                f"expected the measurements in {path} to be of the same {', '.join(differ)}, got those of others; name "
                "another folder"
            )
        self.content["measured"] = measured

    def measure(self, name: str, measurement: Callable[[], Any]) -> Any:
        """What was measured under a name before, or is now: plain JSON types, in which NaN may be."""
        measured = self.content["measured"]
        if name not in measured:
            measured[name] = measurement()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.content)
        return measured[name]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
