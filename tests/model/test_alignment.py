"""The alignment of latents is zero where levels agree within contexts, and grows where they do not."""

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine

import genailab_pyro as glp
from genailab_pyro import Minibatch
from genailab_pyro.analysis.perturb import latent_invariance
from genailab_pyro.model.alignment import LatentAlignment


def penalty(z, conditions, labels=None, **options):
    """The penalty of latents of cells under conditions, one column each."""
    codes = torch.as_tensor(np.asarray(conditions)).reshape(z.shape[-2], -1)
    number = z.shape[-2]
    labels = None if labels is None else torch.as_tensor(labels)
    minibatch = Minibatch(None, codes, torch.zeros(number, 0), torch.ones(number), torch.arange(number), number, labels)

    def guide():
        pyro.sample("z", dist.Delta(z, event_dim=1))

    trace = poutine.trace(guide).get_trace()
    return LatentAlignment(**options)(minibatch, trace, trace)


def test_it_is_the_discrepancy_computed_by_hand():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)

    def kernel(x, y):
        distance = ((x - y) ** 2).mean()
        return sum(np.exp(-distance / (2 * scale**2)) for scale in (0.5, 1.0, 2.0, 4.0)) / 4

    rows = z.numpy()
    across = np.mean([kernel(rows[i], rows[j]) for i in (0, 1) for j in (2, 3)])
    expected = kernel(rows[0], rows[1]) + kernel(rows[2], rows[3]) - 2 * across
    assert penalty(z, [0, 0, 1, 1], weight=3.0).item() == pytest.approx(3 * expected, rel=1e-6)


def test_it_is_zero_on_average_where_levels_agree_and_not_where_they_do_not():
    generator = torch.Generator().manual_seed(0)
    same, moved = [], []
    codes = np.arange(40) % 2
    for _ in range(200):
        z = torch.randn(40, 3, generator=generator)
        same.append(penalty(z, codes).item())
        moved.append(penalty(z + torch.as_tensor(codes)[:, None], codes).item())
    error = np.std(same) / np.sqrt(len(same))
    assert abs(np.mean(same)) < 5 * error
    assert np.mean(moved) > 20 * error


def test_what_differs_between_contexts_alone_costs_nothing():
    generator = torch.Generator().manual_seed(0)
    types = np.repeat([0, 1], 400)
    level = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0]).astype(int)
    z = torch.randn(800, 2, generator=generator) + 5 * torch.as_tensor(types)[:, None]
    assert penalty(z, level, labels=types).item() == pytest.approx(0, abs=1)
    assert penalty(z, np.stack([level, types], 1), context=1).item() == pytest.approx(0, abs=1)
    assert penalty(z, level).item() > 10


def test_contexts_and_levels_count_by_their_cells_and_those_of_one_cell_not_at_all():
    z = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    alone = penalty(z[:6], [0, 0, 0, 1, 1, 1], labels=[0] * 6)
    with_others = penalty(z, [0, 0, 0, 1, 1, 1, 0, 1, 1], labels=[0] * 6 + [1, 1, 2])
    torch.testing.assert_close(alone, with_others)
    nothing = penalty(z.requires_grad_(), np.zeros(9, dtype=int))
    assert nothing.item() == 0


def test_particles_are_averaged():
    z = torch.randn(3, 10, 2, generator=torch.Generator().manual_seed(0))
    codes = np.arange(10) % 2
    torch.testing.assert_close(penalty(z, codes), torch.stack([penalty(one, codes) for one in z]).mean())


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="expected weight to be finite and at least 0"):
        LatentAlignment(weight)


@pytest.mark.parametrize("options", [{"condition": 1}, {"context": 2}])
def test_conditions_that_the_cells_have_not_are_refused(options):
    with pytest.raises(ValueError, match="got 1 conditions, counted from 0"):
        penalty(torch.zeros(4, 2), [0, 0, 1, 1], **options)


@pytest.mark.slow
def test_it_takes_the_perturbation_out_of_the_latent():
    given = glp.data.Perturbations(number=1, num_genes=30, scale=1.5, type_spread=0.7)
    adata = glp.data.simulate(1200, 60, num_types=4, perturbations=given, seed=3).adata
    cells = glp.register(adata, conditions=["perturbation"], labels="cell_type")
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=5, hidden_dims=[32])
    told = []
    for penalties in ([], [LatentAlignment(100.0)]):
        fit = glp.fit(vae, cells, penalties=penalties, max_epochs=30, progress=False)
        table = latent_invariance(fit, condition="perturbation", context="cell_type")
        told.append(table["balanced_accuracy"].mean())
    assert told[1] < min(told[0] - 0.02, 0.58)
