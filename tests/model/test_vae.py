"""The VAE and its named declarations: parts, shapes, conditions, initial weights."""

import math

import pytest
import torch
from torch import nn

from genailab_pyro import Cells, Embedding, LatentLibrary, Minibatch, NormalEncoder, OneHot, StandardNormal
from genailab_pyro.model.likelihoods import (
    INVERSE_DISPERSIONS,
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from genailab_pyro.model.vae import CVAE, CVAE_NB, CVAE_ZINB, VAE, VAE_NB, VAE_ZINB, VAE_Gaussian
from genailab_pyro.nn import MLP, Declared, InputLayer

CONDITIONAL = [CVAE, CVAE_NB, CVAE_ZINB]
BLIND = [VAE_Gaussian, VAE_NB, VAE_ZINB]
LIKELIHOODS = [GaussianLikelihood, NegativeBinomialLikelihood, ZeroInflatedNegativeBinomialLikelihood]


def declare(cls, cells, **options):
    return cls.from_registration(cells, **{"latent_dim": 2, "hidden_dims": [8, 6], **options})


def under(minibatch, code):
    """The same cells under another level of their first condition."""
    conditions = minibatch.conditions.clone()
    conditions[:, 0] = code
    return minibatch._replace(conditions=conditions)


def expression(vae, minibatch, z):
    return vae.likelihood.expression(vae.decode(z, minibatch), minibatch)


class TestDocumentsConstructor:
    @pytest.mark.parametrize(("cls", "likelihood"), zip(CONDITIONAL, LIKELIHOODS, strict=True))
    def test_parts_have_the_declared_widths(self, cls, likelihood):
        vae = cls(input_dim=2000, latent_dim=10, condition_dim=5, hidden_dims=[512, 256])
        assert isinstance(vae, VAE)
        assert type(vae.likelihood) is likelihood
        linears = {name: layer for name, layer in vae.named_modules() if isinstance(layer, (nn.Linear, InputLayer))}
        widths = {name: (layer.in_features, layer.out_features) for name, layer in linears.items()}
        assert [width for name, width in widths.items() if name.startswith("encoder.trunk")] == [
            (2005, 512),
            (512, 256),
        ]
        assert widths["encoder.loc"] == widths["encoder.scale"] == (256, 10)
        assert [width for name, width in widths.items() if name.startswith("decoder")] == [(15, 256), (256, 512)]
        heads = [width for name, width in widths.items() if name.startswith("likelihood")]
        assert heads
        assert set(heads) == {(512, 2000)}

    @pytest.mark.parametrize("cls", CONDITIONAL)
    def test_draws_have_the_shapes_of_cells_latents_and_genes(self, cls, make_minibatch):
        minibatch = make_minibatch(num_cells=4, num_genes=7, num_levels=5)
        vae = cls(input_dim=7, latent_dim=3, condition_dim=5, hidden_dims=[16, 8])
        assert vae.guide(minibatch).shape == (4, 3)
        assert vae.model(minibatch).shape == (4, 7)
        assert vae.model(minibatch._replace(counts=None)).shape == (4, 7)
        assert vae.encoder(minibatch).event_shape == (3,)
        assert vae.prior(vae.condition(minibatch)).event_shape == (3,)
        assert vae.decode(torch.zeros(2, 4, 3), minibatch).shape == (2, 4, 16)

    @pytest.mark.parametrize("cls", BLIND)
    def test_the_blind_ones_have_no_condition(self, cls, make_minibatch):
        vae = cls(input_dim=5, latent_dim=2, hidden_dims=[8])
        assert vae.condition.output_dim == vae.decoder.condition_dim == vae.encoder.trunk.condition_dim == 0
        assert vae.model(make_minibatch()).shape == (6, 5)

    def test_no_condition_at_all_is_a_condition_of_width_zero(self, make_minibatch):
        minibatch = make_minibatch()
        vae = CVAE_NB(input_dim=5, latent_dim=2, condition_dim=0, hidden_dims=[8])
        assert vae.model(minibatch._replace(conditions=minibatch.conditions[:, :0])).shape == (6, 5)


class TestConditions:
    @pytest.mark.parametrize("cls", CONDITIONAL)
    @pytest.mark.parametrize("embedding_dim", [None, 3])
    def test_encoder_and_decoder_see_every_condition_and_covariate(self, cls, embedding_dim, cells):
        vae = declare(cls, cells, embedding_dim=embedding_dim).eval()
        assert vae.condition.output_dim == (5 if embedding_dim is None else 7)
        minibatch = cells.take(range(4))
        changed = [
            under(minibatch, 1 - minibatch.conditions[:, 0]),
            minibatch._replace(conditions=minibatch.conditions[:, :1].expand(-1, 2)),
            minibatch._replace(continuous=minibatch.continuous + 1),
        ]
        z = torch.zeros(4, 2)
        for other in changed:
            assert not torch.equal(vae.encoder(other).mean, vae.encoder(minibatch).mean)
            assert not torch.equal(expression(vae, other, z), expression(vae, minibatch, z))

    @pytest.mark.parametrize("cls", BLIND)
    @pytest.mark.parametrize("library", ["observed", "latent"])
    def test_the_blind_ones_ignore_conditions(self, cls, library, cells):
        if cls is VAE_Gaussian and library == "latent":
            library = "observed"
        vae = declare(cls, cells, library=library).eval()
        minibatch = cells.take(range(4))
        other = under(minibatch, 1 - minibatch.conditions[:, 0])._replace(continuous=minibatch.continuous + 1)
        none = minibatch._replace(conditions=minibatch.conditions[:, :0], continuous=minibatch.continuous[:, :0])
        z = torch.zeros(4, 2)
        for changed in (other, none):
            torch.testing.assert_close(vae.encoder(changed).mean, vae.encoder(minibatch).mean)
            torch.testing.assert_close(expression(vae, changed, z), expression(vae, minibatch, z))
            if vae.library is not None:
                prior, expected = vae.library.prior(changed), vae.library.prior(minibatch)
                torch.testing.assert_close(prior.loc, expected.loc)

    @pytest.mark.parametrize("cls", CONDITIONAL)
    def test_conditions_wrong_in_number_are_refused_with_the_fix(self, cls, make_minibatch):
        vae = cls(input_dim=5, latent_dim=2, condition_dim=3, hidden_dims=[8])
        minibatch = make_minibatch()
        without = minibatch._replace(conditions=minibatch.conditions[:, :0])
        for program in (vae.model, vae.guide):
            with pytest.raises(ValueError, match=r"expected cells with 1 categorical condition\(s\).*has 0"):
                program(without)

    def test_covariates_wrong_in_number_are_refused(self, cells):
        vae, minibatch = declare(CVAE_NB, cells), cells.take(range(4))
        with pytest.raises(ValueError, match="expected a condition of width 5, got one of width 4"):
            vae.model(minibatch._replace(continuous=minibatch.continuous[:, :0]))

    def test_a_decoder_declared_for_another_condition_is_refused(self):
        with pytest.raises(ValueError, match=r"condition of width 2.*got one of width 3; declare both"):
            VAE(
                StandardNormal(2),
                MLP(2, [4], condition_dim=2),
                NegativeBinomialLikelihood(4, 5),
                NormalEncoder(5, 2),
                condition=OneHot([3]),
            )

    def test_an_embedding_is_one_module_for_encoder_and_decoder(self, cells):
        vae = declare(CVAE_NB, cells, embedding_dim=3)
        again = Declared.declare(vae.declaration())
        for model in (vae, again):
            assert isinstance(model.condition, Embedding)
            assert model.encoder.condition is model.condition


class TestFromRegistration:
    @pytest.mark.parametrize("cls", [CVAE_NB, CVAE_ZINB, VAE_NB, VAE_ZINB])
    @pytest.mark.parametrize("library", ["observed", "latent"])
    def test_a_latent_library_is_a_site_of_both_programs(self, cls, library, cells):
        vae = declare(cls, cells, library=library)
        assert (vae.library is not None) == (library == "latent")
        assert vae.model(cells.take(range(4))).shape == (4, 7)

    def test_a_latent_library_has_a_prior_for_each_level_of_the_first_condition(self, cells):
        vae = declare(CVAE_NB, cells, library="latent")
        minibatch = cells.take(range(40))
        prior = vae.library.prior(minibatch)
        logs = minibatch.library.log()
        for level in (0, 1):
            inside = minibatch.conditions[:, 0] == level
            torch.testing.assert_close(prior.loc[inside], logs[inside].mean().expand(inside.sum()))
            spread = logs[inside].std(correction=0).expand(inside.sum())
            torch.testing.assert_close(prior.scale[inside], spread)

    def test_a_blind_latent_library_has_one_prior_for_all(self, cells):
        prior = declare(VAE_NB, cells, library="latent").library.prior(cells.take(range(40)))
        torch.testing.assert_close(prior.loc, torch.from_numpy(cells.library).log().mean())

    def test_a_latent_library_begins_at_the_observed_total(self, cells):
        minibatch = cells.take(range(40))
        posterior = declare(CVAE_NB, cells, library="latent").library.posterior(minibatch)
        torch.testing.assert_close(posterior.loc, minibatch.library.log())
        assert 0.05 < posterior.scale.mean() < 0.2

    @pytest.mark.parametrize("cls", [CVAE_NB, CVAE_ZINB])
    @pytest.mark.parametrize(("form", "shape"), [("gene", (7,)), ("gene-condition", (4, 7)), ("gene-cell", (3, 4, 7))])
    def test_each_form_of_inverse_dispersion(self, cls, form, shape, cells):
        vae = declare(cls, cells, inverse_dispersion=form)
        assert type(vae.likelihood.log_inverse_dispersion) is INVERSE_DISPERSIONS[form]
        minibatch = cells.take(range(4))
        features = vae.decode(torch.randn(3, 4, 2), minibatch)
        assert vae.likelihood.log_inverse_dispersion(features, minibatch).shape == shape

    @pytest.mark.parametrize("norm", ["layer", "batch", "none"])
    def test_each_norm(self, norm, cells):
        vae = declare(CVAE_NB, cells, norm=norm, library="latent")
        kinds = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, "none": nn.Identity}
        for trunk in (vae.encoder.trunk, vae.decoder, vae.library.trunk):
            assert any(isinstance(layer, kinds[norm]) for layer in trunk.layers)
        assert vae.model(cells.take(range(4))).shape == (4, 7)

    def test_dropout_reaches_every_network(self, cells):
        vae = declare(CVAE_NB, cells, dropout=0.3, library="latent")
        rates = [layer.p for layer in vae.modules() if isinstance(layer, nn.Dropout)]
        assert len(rates) == 6
        assert set(rates) == {0.3}

    @pytest.mark.parametrize("cls", [CVAE, CVAE_NB, CVAE_ZINB])
    def test_a_size_factor_takes_the_place_of_the_library(self, cls):
        generator = torch.Generator().manual_seed(0)
        counts = torch.poisson(torch.full((30, 7), 5.0), generator=generator)
        factors = torch.linspace(0.5, 2, 30)
        cells = Cells.from_tensors(counts, size_factor=factors)
        vae = declare(cls, cells).eval()
        minibatch = cells.take(range(4))
        doubled = minibatch._replace(library=2 * minibatch.library)
        features = vae.decode(torch.zeros(4, 2), minibatch)
        if cls is CVAE:
            expected = torch.log1p(minibatch.counts / minibatch.library[:, None])
            torch.testing.assert_close(vae.likelihood.observed(minibatch), expected)
        else:
            mean, twice = (vae.likelihood(features, cells).mean for cells in (minibatch, doubled))
            torch.testing.assert_close(twice, 2 * mean)
            assert not torch.allclose(mean.sum(-1), minibatch.library)

    @pytest.mark.parametrize("cls", [*CONDITIONAL, *BLIND])
    def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state(self, cls, cells):
        state = torch.get_rng_state()
        first, second, other = (declare(cls, cells, seed=seed).state_dict() for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["encoder.loc.weight"], other["encoder.loc.weight"])
        assert not torch.equal(first["decoder.layers.0.weight"], other["decoder.layers.0.weight"])

    def test_the_output_begins_at_the_shares_of_the_genes(self, cells):
        vae = declare(CVAE_NB, cells)
        shares = torch.from_numpy(cells.gene_totals() + 0.5).float() / cells.library.sum()
        torch.testing.assert_close(vae.likelihood.log_expression.bias.exp(), shares)

    @pytest.mark.parametrize("cls", [*CONDITIONAL, *BLIND])
    @pytest.mark.parametrize("options", [{}, {"embedding_dim": 2, "norm": "batch", "dropout": 0.0}])
    def test_a_declaration_gives_a_vae_with_the_same_weights_to_load(self, cls, options, cells):
        vae = declare(cls, cells, **options).eval()
        again = Declared.declare(vae.declaration()).eval()
        assert again.name != vae.name
        again.load_state_dict(vae.state_dict())
        minibatch = cells.take(range(4))
        torch.testing.assert_close(again.encoder(minibatch).mean, vae.encoder(minibatch).mean)
        z = torch.randn(4, 2)
        torch.testing.assert_close(expression(again, minibatch, z), expression(vae, minibatch, z))

    @pytest.mark.parametrize(
        ("cls", "options", "message"),
        [
            (CVAE, {"inverse_dispersion": "gene"}, "expected no inverse_dispersion for CVAE, got 'gene'"),
            (CVAE_NB, {"inverse_dispersion": "cell"}, "'gene', 'gene-condition', 'gene-cell', got 'cell'"),
            (VAE_NB, {"inverse_dispersion": "gene-condition"}, "expected a categorical condition"),
            (CVAE_NB, {"library": "hidden"}, "library to be one of 'observed', 'latent', got 'hidden'"),
            (CVAE, {"library": "latent"}, "expected a likelihood over counts beside a latent library"),
            (CVAE_NB, {"norm": "group"}, "norm to be one of"),
            (CVAE_NB, {"latent_dim": 0}, "latent_dim|widths of at least one"),
        ],
    )
    def test_options_that_do_not_go_together_are_refused(self, cls, options, message, cells):
        with pytest.raises(ValueError, match=message):
            declare(cls, cells, **options)

    def test_a_latent_library_beside_a_size_factor_is_refused(self):
        cells = Cells.from_tensors(torch.ones(6, 3), size_factor=torch.linspace(0.5, 2, 6))
        with pytest.raises(ValueError, match="expected a latent library or a size factor, got both"):
            declare(CVAE_NB, cells, library="latent")

    def test_an_anndata_that_is_not_registered_is_refused(self, cells):
        with pytest.raises(TypeError, match=r"expected cells from glp.register\(adata\), got Tensor"):
            declare(CVAE_NB, torch.ones(3, 3))


class TestParts:
    @pytest.mark.parametrize("part", ["prior", "decoder", "likelihood", "encoder"])
    def test_a_part_that_is_no_module_is_named(self, part):
        parts = {
            "prior": StandardNormal(2),
            "decoder": MLP(2, [4]),
            "likelihood": NegativeBinomialLikelihood(4, 5),
            "encoder": NormalEncoder(5, 2),
        }
        with pytest.raises(TypeError, match=f"expected {part} to be a torch module, got str"):
            VAE(**{**parts, part: "normal"})

    def test_programs_are_modules_that_share_the_parameters(self):
        vae = CVAE_NB(5, 2, 3, [8])
        expected = {id(parameter) for parameter in vae.parameters()}
        for program in (vae.model, vae.guide):
            assert {id(parameter) for parameter in program.parameters()} == expected

    def test_single_and_double_precision(self, make_minibatch):
        vae = CVAE_NB(5, 2, 3, [8], library=LatentLibrary(5, [3.0], [1.0])).double()
        minibatch = make_minibatch(dtype=torch.float64)
        assert vae.guide(minibatch).dtype == vae.model(minibatch._replace(counts=None)).dtype == torch.float64

    def test_an_encoder_without_counts_says_so(self, make_minibatch):
        with pytest.raises(ValueError, match="expected a minibatch with counts to encode, got one without"):
            CVAE_NB(5, 2, 3, [8]).guide(make_minibatch()._replace(counts=None))

    @pytest.mark.parametrize(("loc", "scale"), [([], []), ([1.0], [0.0]), ([1.0, 2.0], [1.0])])
    def test_a_library_prior_that_is_none_is_refused(self, loc, scale):
        with pytest.raises(ValueError, match="expected as many prior means as positive standard deviations"):
            LatentLibrary(5, loc, scale)


def test_what_is_observed_does_not_depend_on_the_latent_library():
    """A likelihood that divides by the library must not see its data move with the draws."""

    class Shares(NegativeBinomialLikelihood):
        def observed(self, minibatch):
            self.seen = minibatch.library
            return minibatch.counts

    vae = VAE(
        StandardNormal(2),
        MLP(2, [4]),
        Shares(4, 5),
        NormalEncoder(5, 2),
        library=LatentLibrary(5, [math.log(9)], [1.0]),
    )
    none = torch.zeros(3, 0)
    minibatch = Minibatch(torch.ones(3, 5), none.long(), none, torch.full((3,), 5.0), torch.arange(3), 3)
    vae.model(minibatch)
    torch.testing.assert_close(vae.likelihood.seen, minibatch.library)
