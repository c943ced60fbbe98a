"""What is shown of a run: live on a terminal, plain lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from genailab_pyro.train.progress import ProgressLine

ROW = {
    "epoch": 2,
    "train_elbo": -1234.56,
    "train_reconstruction": 1200.06,
    "train_kl": 34.5,
    "validation_elbo": -1300.25,
    "gradient_norm": 0.01234,
    "seconds": 3.0,
}


def shown(row=ROW, *, terminal=False, **options):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160)
    with ProgressLine(10, console=console, **options) as line:
        line.update(row)
    return text.getvalue()


def test_a_file_gets_one_plain_line_per_epoch():
    assert shown() == (
        "epoch 2/10  ELBO -1234.6  reconstruction 1200.1  KL 34.5  gradient 0.0123  "
        "validation ELBO -1300.2  12 s left\n"
    )


def test_a_narrow_file_gets_an_unbroken_line():
    text = io.StringIO()
    with ProgressLine(10, console=Console(file=text, width=20)) as line:
        line.update(ROW)
        line.update({**ROW, "epoch": 3})
    assert text.getvalue().count("\n") == 2


def test_without_validation_cells_nothing_is_said_of_them():
    assert "validation" not in shown({**ROW, "validation_elbo": float("nan")})


def test_a_terminal_gets_a_bar_with_the_same_figures():
    text = shown(terminal=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "\x1b[" in text
    assert "epoch 2/10" in plain
    assert "ELBO -1234.6" in plain
    assert "validation ELBO -1300.2" in plain
    assert "s left" not in plain


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_unless_asked_for(terminal):
    assert shown(terminal=terminal, shown=False) == ""


def test_the_bar_is_put_away_after_an_error():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=160)
    with pytest.raises(RuntimeError), ProgressLine(10, console=console) as line:  # noqa: PT012
        line.update(ROW)
        raise RuntimeError
    assert text.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_a_run_shows_its_epochs_on_the_standard_error(vae, cells, train, capsys):
    train(vae, cells, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.findall(r"epoch (\d)/3", captured.err) == ["1", "2", "3"]
    train(vae, cells, progress=False)
    assert capsys.readouterr() == ("", "")
