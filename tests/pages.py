"""Pages of the tutorials, run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

TUTORIALS = Path(__file__).parent.parent / "tutorials"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages(folder):
    """The pages of a folder of the tutorials."""
    return sorted((TUTORIALS / folder).glob("*.md"))


def blocks(page):
    """What a page has a reader run, in its order."""
    return BLOCK.findall(page.read_text())


def run(page, folder):
    """Run the blocks of a page as one script, in a folder of their own; a warning fails as an error does."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(blocks(page))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
