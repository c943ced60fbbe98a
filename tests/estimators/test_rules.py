"""Gradients by each rule against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from genailab_pyro import Estimator, estimate, estimators
from genailab_pyro.estimators import Estimated
from genailab_pyro.estimators.rules import RULES

AT_START, AT_POSTERIOR = (0.0, 1.0), (1.0, math.sqrt(0.5))


def exact_gradient(loc, scale):
    """Gradient of the negative ELBO in loc and in log scale."""
    return torch.tensor([2 * loc - 2, 2 * scale**2 - 1], dtype=torch.float64)


def gradients(conjugate, point, estimator, num_draws=20_000, seed=0):
    """Independent draws of the gradient in loc and in log scale, shape [draws, 2]."""
    pair = conjugate(*point, num_draws)
    model, guide, elbo = estimators.get(estimator).bind(pair.model, pair)
    torch.manual_seed(seed)
    with pyro.get_param_store().scope():
        return torch.stack(torch.autograd.grad(elbo.differentiable_loss(model, guide), [pair.loc, pair.log_scale]), -1)


def errors_of_mean(draws, expected):
    return (draws.mean(0) - expected).abs() / (draws.std(0) / len(draws) ** 0.5)


def error_of_variance(values, expected):
    variance, fourth = values.var(), ((values - values.mean()) ** 4).mean()
    return (variance - expected).abs() / ((fourth - variance**2) / len(values)).sqrt()


@pytest.mark.parametrize("point", [AT_START, AT_POSTERIOR], ids=["start", "posterior"])
@pytest.mark.parametrize("estimator", ["pathwise", "pathwise-kl", "score", "score-graph"])
def test_mean_gradient_is_the_exact_one(conjugate, estimator, point):
    draws = gradients(conjugate, point, estimator)
    noisy = draws.std(0) > 1e-9
    expected = exact_gradient(*point)
    assert (errors_of_mean(draws, expected)[noisy] < 5).all()
    torch.testing.assert_close(draws.mean(0)[~noisy], expected[~noisy])


@pytest.mark.parametrize(
    ("estimator", "point", "variance"),
    [
        ("pathwise", AT_START, 4.0),
        ("pathwise", AT_POSTERIOR, 2.0),
        ("pathwise-kl", AT_START, 1.0),
        ("pathwise-kl", AT_POSTERIOR, 0.5),
        ("score", AT_START, 29.03),
        ("score", AT_POSTERIOR, 10.27),
        ("score-graph", AT_POSTERIOR, 10.27),
    ],
)
def test_variance_in_loc_is_the_closed_form(conjugate, estimator, point, variance):
    draws = gradients(conjugate, point, estimator)[:, 0]
    assert error_of_variance(draws, variance) < 5


def test_a_wrong_sign_of_the_score_is_found(conjugate):
    draws = gradients(conjugate, AT_START, "score")
    assert errors_of_mean(-draws, exact_gradient(*AT_START)).max() > 5


def test_an_entropy_term_left_out_of_pathwise_is_found(conjugate):
    # Without log q the gradient in the log scale loses its constant -1.
    draws = gradients(conjugate, AT_START, "pathwise") + torch.tensor([0.0, 1.0])
    assert errors_of_mean(draws, exact_gradient(*AT_START)).max() > 5


def test_ten_particles_divide_the_variance_by_ten(conjugate):
    draws = gradients(conjugate, AT_START, Estimator(num_particles=10))[:, 0]
    assert error_of_variance(draws, 0.4) < 5


def test_score_and_score_graph_coincide_with_one_latent(conjugate):
    first, second = (gradients(conjugate, AT_START, name, seed=3) for name in ("score", "score-graph"))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("estimator", ["pathwise", "pathwise-kl", "score", "score-graph"])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_svi_and_the_torch_module_give_the_same_gradient(conjugate, estimator, num_particles):
    found = []
    for use_svi in (True, False):
        pair = conjugate(*AT_START)
        model, guide, elbo = estimators.get(estimator, num_particles=num_particles).bind(pair.model, pair)
        torch.manual_seed(1)
        with pyro.get_param_store().scope():
            if use_svi:
                loss = elbo.loss_and_grads(model, guide)
            else:
                value = elbo(model, guide)()
                value.backward()
                loss = value.item()
        found.append((loss, pair.loc.grad.item(), pair.log_scale.grad.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize("rule", ["pathwise", "stl", "dreg", "score", "pathwise-or-score"])
def test_expand_keeps_the_rule(rule):
    loc = torch.zeros(3, requires_grad=True)
    site = Estimated(dist.Normal(loc, 1.0).to_event(1), RULES[rule]).expand([5, 4])
    assert site.batch_shape == (5, 4)
    assert site.event_shape == (3,)
    assert site.has_rsample == RULES[rule].reparameterised
    assert site().requires_grad == RULES[rule].reparameterised


def test_plates_and_particles_do_not_undo_the_rule():
    loc = nn.Parameter(torch.zeros(3, 2))

    def guide():
        with pyro.plate("cells", 3, dim=-1):
            return pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    with pyro.plate("particles", 4, dim=-2):
        assert not estimate(z="score")(guide)().requires_grad
        assert estimate(z="pathwise")(guide)().requires_grad


def test_a_rule_at_the_site_comes_before_one_by_name_and_that_before_the_default():
    parameter = torch.zeros(1, requires_grad=True)

    def guide():
        at_site = pyro.sample("a", dist.Normal(parameter, 1.0), infer={"estimator": "score"})
        by_name = pyro.sample("b", dist.Normal(parameter, 1.0))
        default = pyro.sample("c", dist.Normal(parameter, 1.0))
        return at_site.requires_grad, by_name.requires_grad, default.requires_grad

    assert estimate("pathwise", a="pathwise", b="score")(guide)() == (False, False, True)


def test_a_discrete_site_refuses_the_pathwise_rule_and_is_named():
    guide = estimate("pathwise")(lambda: pyro.sample("label", dist.Categorical(torch.ones(3) / 3)))
    with pytest.raises(ValueError, match=r"site 'label'.*reparameterised.*Categorical; use the rule 'score'"):
        guide()


def test_an_unknown_rule_is_refused_at_once():
    with pytest.raises(ValueError, match=r"'pathwise', 'stl', .*got 'reinforce'"):
        estimate(z="reinforce")
