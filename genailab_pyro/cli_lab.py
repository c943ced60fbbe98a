"""The command that opens the ELBO lab in a browser."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

LAB_EXAMPLES = "Examples:\n\ngenailab-pyro lab\n\ngenailab-pyro lab --port 8080 --headless"
MISSING = "expected marimo for the lab, got none; install it: pip install 'genailab-pyro[lab]'"
APP = Path(__file__).parent / "lab" / "app.py"


def lab(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve at.")] = 2718,
    host: Annotated[
        str, typer.Option(help="Address to serve at; 127.0.0.1 is seen by this machine alone.")
    ] = "127.0.0.1",
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser.")] = False,
) -> None:
    """Play with gradient estimators, posterior collapse and count distributions in a browser.

    It needs no network. Stop it with Ctrl-C.
    """
    if importlib.util.find_spec("marimo") is None:
        typer.echo(MISSING, err=True)
        raise typer.Exit(1)
    typer.echo(f"The lab is at http://{host}:{port}; stop it with Ctrl-C")
    try:
        finished = subprocess.run(command(port, host, headless=headless), check=False)
    except KeyboardInterrupt:
        return
    if finished.returncode:
        raise typer.Exit(finished.returncode)


def command(port: int, host: str, *, headless: bool) -> list[str]:
    """What serves the lab.

    Example:
        >>> command(2718, "127.0.0.1", headless=True)[1:4]
        ['-m', 'marimo', 'run']
    """
    options = ["--port", str(port), "--host", host, *(["--headless"] if headless else [])]
    return [sys.executable, "-m", "marimo", "run", str(APP), "--no-token", *options]
