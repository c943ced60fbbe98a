"""One line that tells how training goes: live on a terminal, a plain one per epoch elsewhere."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine:
    """Shows ELBO, reconstruction, KL, gradient norm and the seconds that are left.

    Args:
        num_epochs: Length of the run.
        shown: Whether anything is shown.
        console: Where to; None for the standard error.
    """

    def __init__(self, num_epochs: int, *, shown: bool = True, console: Console | None = None) -> None:
        self.num_epochs = num_epochs
        self.console = Console(stderr=True) if console is None else console
        self.shown = shown
        self._live: Progress | None = None
        if shown and self.console.is_terminal:
            self._live = Progress(
                TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._live.add_task("", total=num_epochs)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, row: Mapping[str, float]) -> None:
        """Show a row of the history."""
        if not self.shown:
            return
        text = (
            f"ELBO {row['train_elbo']:.1f}  reconstruction {row['train_reconstruction']:.1f}  "
            f"KL {row['train_kl']:.1f}  gradient {row['gradient_norm']:.3g}"
        )
        if row["validation_elbo"] == row["validation_elbo"]:
            text += f"  validation ELBO {row['validation_elbo']:.1f}"
        epoch = int(row["epoch"])
        if self._live is not None:
            self._live.update(self._task, completed=epoch, description=text)
        else:
            left = row["seconds"] / epoch * (self.num_epochs - epoch)
            self.console.print(
                f"epoch {epoch}/{self.num_epochs}  {text}  {left:.0f} s left", highlight=False, soft_wrap=True
            )
