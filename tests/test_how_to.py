"""The how-to pages run as they are written, from top to bottom, in a folder of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import genailab_pyro as glp

PAGES = sorted((Path(__file__).parent.parent / "tutorials" / "how-to").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")


def blocks(page):
    return BLOCK.findall(page.read_text())


def run(page, folder):
    """Write what a page puts into files, and run the rest as one script."""
    script = []
    for block in blocks(page):
        name = FILE.match(block)
        if name:
            (folder / name[1]).write_text(block)
        else:
            script.append(block)
    command = [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path):
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_new_fits_in_fifteen_lines(page):
    for block in filter(FILE.match, blocks(page)):
        body = block[block.index("class ") :]
        code = re.sub(r'""".*?"""', "", body, flags=re.DOTALL)
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= 15, page.stem


def declare(*, prior=None, likelihood=None, heads=()):
    return glp.VAE(
        prior or glp.StandardNormal(2),
        glp.MLP(2, [4]),
        likelihood or glp.PoissonLikelihood(4, 12),
        glp.NormalEncoder(12, 2, [4]),
        heads=heads,
    )


@pytest.fixture(scope="module")
def cells():
    return glp.register(glp.data.simulate(60, 12, num_types=2, seed=0).adata)


class Poisson(glp.Likelihood):
    """Poisson counts, whose shares are taken over a dimension, by a network that may be handed in."""

    def __init__(self, dim=-1, network=None):
        super().__init__()
        self.dim, self.network = dim, network or torch.nn.Linear(4, 12)

    def forward(self, features, minibatch):
        share = self.network(features).softmax(self.dim)
        return dist.Poisson(minibatch.library.unsqueeze(-1) * share + 1e-6).to_event(1)


class MadeOnce(Poisson):
    """A likelihood with a value of its parameters that is made with them."""

    def __init__(self):
        super().__init__()
        self.scale_of_genes = self.network.weight.exp()


class Drawn(glp.Prior):
    """A prior that draws its own scale."""

    def forward(self, condition):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        return dist.Normal(torch.zeros(2), scale).to_event(1)


class Zeros(glp.Head):
    """The share of genes without counts, whether there are counts or not."""

    site = "zeros"

    def forward(self, z, minibatch, upper=None):
        return dist.Normal(z.mean(-1), 1.0)

    def observed(self, minibatch):
        zeros = (minibatch.counts == 0).float().mean(-1)
        return zeros, torch.ones_like(zeros, dtype=torch.bool)


@pytest.mark.parametrize(
    ("page", "said", "parts", "message"),
    [
        ("likelihood", "refuses a likelihood that answers them", {"likelihood": Poisson(dim=1)}, "each draw by itself"),
        ("likelihood", "tensors are parameters or made in forward()", {"likelihood": MadeOnce()}, None),
        ("prior", "the guide knows nothing", {"prior": Drawn()}, "'scale' is not in the guide"),
        ("structure", "if minibatch.counts is None: return None", {"heads": [Zeros()]}, None),
    ],
)
def test_what_a_page_says_is_refused_is_refused_before_training(page, said, parts, message, cells):
    (text,) = (each.read_text() for each in PAGES if each.stem == page)
    assert said in text
    with pytest.raises(ValueError, match=re.escape(message or said)):
        glp.fit(declare(**parts), cells, max_epochs=1, progress=False)


def test_a_torch_module_that_is_not_declared_trains_and_is_refused_when_it_is_saved(cells, tmp_path):
    with pytest.raises(TypeError, match=r"Poisson\(network=\) .* got function"):
        Poisson(network=lambda features: features)
    vae = declare(likelihood=Poisson(network=torch.nn.Linear(4, 12)))
    with pytest.warns(UserWarning, match=r"this fit cannot be saved: .*Poisson\(network=\)"):
        fit = glp.fit(vae, cells, max_epochs=1, progress=False)
    with pytest.raises(TypeError, match=r"Poisson\(network=\) .* got Linear; derive it from genailab_pyro.nn.Declared"):
        fit.save(tmp_path / "fit")


def test_there_is_a_page_for_each_part():
    assert {page.stem for page in PAGES} == {"likelihood", "prior", "guide", "condition", "structure", "estimator"}


def test_a_page_that_is_wrong_fails(tmp_path):
    page = tmp_path / "wrong.md"
    page.write_text("```python\n# my_part.py\nanswer = 42\n```\n```python\nfrom my_part import question\n```\n")
    assert "cannot import name" in run(page, tmp_path).stderr
