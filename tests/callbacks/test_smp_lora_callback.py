import itertools

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_privacy.callbacks import SMPLoRA
from lightning_privacy.callbacks.smp_lora.observer import ModelObserver
from lightning_privacy.callbacks.smp_lora.reader import FeatureReader
from lightning_privacy.errors import DefenceConflictError, InputError, MissingProtocolError, NoEffectError
from lightning_privacy.properties import Property
from lightning_privacy.testing.settings import split_images
from lightning_privacy.testing.tiny_modules import PlainRegressor, TinyDenoiser
from lightning_privacy.testing.toy_data import ToyImages

SMALL = {"aux_batch_size": 4, "hidden": (8,)}


def fit(module, data, *callbacks, **options):
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, data)
    return trainer


def reduced_error(module, batch, draw):
    return module.per_sample_error(batch, draw).mean()


def plain_error(module, batch, draw):
    prediction, truth = module.predict_lower(batch)
    return (prediction - truth).square()


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.fixture(scope="module")
def undefended():
    module = TinyDenoiser()
    fit(module, split_images())
    return weights(module)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"mode": "mp"},
        {"interval": 2},
        {"proxy": "error_map", "gain": "members", "shared_forward": False, "dropout": 0.5},
        {"proxy": "pooled_map", "order": "adapt_first"},
        {"proxy": "scalar"},
        {"proxy": "multi_t", "draws": 2},
    ],
)
def test_strength_zero_trains_the_undefended_model_bit_for_bit(undefended, kwargs):
    module, defence = TinyDenoiser(), SMPLoRA(strength=0.0, delta=0.0, **{**SMALL, **kwargs})
    fit(module, split_images(), defence)
    assert defence.state_dict()["proxy"]["steps"] > 0  # the proxy was at work
    assert all(torch.equal(value, undefended[name]) for name, value in weights(module).items())


@pytest.mark.parametrize("kwargs", [{}, {"mode": "mp"}, {"ratio": "per_sample"}, {"interval": 2}])
def test_strength_changes_the_model(undefended, kwargs):
    module = TinyDenoiser()
    trainer = fit(module, split_images(), SMPLoRA(strength=0.5, **SMALL, **kwargs))
    assert not all(torch.equal(value, undefended[name]) for name, value in weights(module).items())
    logged = {k.removeprefix("defence/smp_lora/") for k in trainer.callback_metrics if k.startswith("defence/")}
    assert {"gain", "proxy_accuracy", "denominator", "strength"} <= logged


def test_the_proxy_is_fitted_on_auxiliary_records_alone(monkeypatch):
    data, defence, fitted = split_images(), SMPLoRA(strength=0.5, proxy="scalar", replay=0, **SMALL), []
    aux_rows, all_rows = [], []
    original = SMPLoRA._fit_features

    def spy(self, step, members, indices, nonmembers):
        mine, others = original(self, step, members, indices, nonmembers)
        aux = set(data.roles["aux_member"])
        aux_rows.append(sum(int(i) in aux for i in indices))
        all_rows.append(len(indices))
        fitted.append(len(mine))
        return mine, others

    monkeypatch.setattr(SMPLoRA, "_fit_features", spy)
    fit(TinyDenoiser(), data, defence)
    assert fitted == aux_rows
    assert sum(fitted) < sum(all_rows)


def test_strength_grows_geometrically(monkeypatch):
    seen = []
    original = SMPLoRA._log
    monkeypatch.setattr(
        SMPLoRA,
        "_log",
        lambda self, step, gain, strength: (seen.append(strength), original(self, step, gain, strength)),
    )
    fit(TinyDenoiser(), split_images(), SMPLoRA(strength=0.1, strength_end=10.0, interval=1, **SMALL))
    assert seen[0] == pytest.approx(0.1)
    assert seen[-1] == pytest.approx(10.0)
    ratios = [b / a for a, b in itertools.pairwise(seen)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


class FirstGradient(L.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.value = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        trainer.should_stop = True


@pytest.mark.parametrize("mode", ["mp", "smp"])
@pytest.mark.parametrize("ratio", ["batch", "per_sample"])
def test_an_interval_keeps_the_gains_weight(mode, ratio):
    def gradient(**kwargs):
        first = FirstGradient()
        defence = SMPLoRA(strength=20.0, mode=mode, ratio=ratio, **SMALL, **kwargs)
        fit(TinyDenoiser(), split_images(), defence, first, max_steps=1)
        return first.value

    once, twice, thrice = (gradient(interval=interval) for interval in (1, 2, 3))
    torch.testing.assert_close(thrice - twice, twice - once, rtol=1e-4, atol=1e-7)
    assert (twice - once).norm() > 1e-3 * once.norm()  # far above what rounding could do


def test_the_papers_settings():
    paper, released = SMPLoRA.paper(), SMPLoRA.released()
    assert (paper.strength, paper.delta, paper.lr, paper.weight_decay) == (0.05, 1e-5, 1e-5, 1e-4)
    assert (paper.hidden, paper.dropout, paper.proxy, paper.gain) == ((512, 256), 0.5, "error_map", "members")
    assert (released.strength, released.order) == (1.0, "adapt_first")
    assert SMPLoRA.paper(strength=0.1).strength == 0.1


def test_separability_depends_on_the_ratio():
    assert Property.PER_SAMPLE_SEPARABLE in SMPLoRA().breaks
    assert Property.PER_SAMPLE_SEPARABLE not in SMPLoRA(ratio="per_sample").breaks


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"strength": -1.0}, "`strength` is -1.0"),
        ({"strength": float("nan")}, "`strength` is nan"),
        ({"interval": 0}, "`interval` is 0"),
        ({"aux_views": -1}, "`aux_views` is -1"),
        ({"aux_batch_size": 0}, "at least one non-member"),
        ({"strength": 0.0, "strength_end": 1.0}, "above 0"),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(InputError, match=words):
        SMPLoRA(**kwargs)


def test_data_without_a_split_is_refused():
    with pytest.raises(NoEffectError, match="Wrap it.*MembershipSplit"):
        fit(TinyDenoiser(), ToyImages(n=16, size=8), SMPLoRA())


def test_a_module_without_the_protocol_is_told_what_to_add():
    with pytest.raises(MissingProtocolError, match="PlainRegressor.per_sample_error"):
        fit(PlainRegressor(), split_images(), SMPLoRA())


def test_calibrated_needs_a_reference():
    with pytest.raises(MissingProtocolError, match=r"reference\(\).*error_map"):
        fit(PlainRegressor(), split_images(), SMPLoRA(error_fn=plain_error, **SMALL))


def test_a_reduced_error_is_refused():
    with pytest.raises(InputError, match="one entry"):
        fit(
            TinyDenoiser(),
            split_images(),
            SMPLoRA(error_fn=reduced_error, **SMALL),
        )


def test_an_unknown_import_path_is_refused():
    with pytest.raises(InputError, match="cannot be imported"):
        fit(TinyDenoiser(), split_images(), SMPLoRA(error_fn="no_such_package.function"))


def test_lbfgs_is_refused():
    class Closures(TinyDenoiser):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(DefenceConflictError, match=r"LBFGS.*AdamW"):
        fit(Closures(), split_images(), SMPLoRA(**SMALL))


def test_auxiliary_batches_are_not_the_users_batches():
    data = split_images()
    fit(TinyDenoiser(), data, SMPLoRA(**SMALL))
    loader = data.train_dataloader()
    assert isinstance(loader, DataLoader)
    members = {data.record_ids[i] for i in data.roles["member"]}
    assert not members & {data.record_ids[i] for i in data.roles["aux_nonmember"]}


def test_reference_errors_of_the_auxiliaries_are_computed_once_a_place_in_the_bank(monkeypatch):
    data, defence, asked, computed = split_images(), SMPLoRA(bank=1, interval=1, **SMALL), [], []
    features, references = FeatureReader.features, ModelObserver.references

    def spy_features(self, module, *observations):
        asked.append(observations[1])
        return features(self, module, *observations)

    def spy_references(self, module, pairs):
        computed.append(len(pairs))
        return references(self, module, pairs)

    monkeypatch.setattr(FeatureReader, "features", spy_features)
    monkeypatch.setattr(ModelObserver, "references", spy_references)
    fit(TinyDenoiser(), data, defence)
    places = {seen.place for seen in asked}
    assert len(asked) > len(places) == len(data.roles["aux_nonmember"]) // 4
    assert computed == [2] * len(places) + [1] * (len(asked) - len(places))
    for seen in asked[len(places) :]:
        first = next(other for other in asked if other.place == seen.place)
        assert torch.equal(seen.batch["image"], first.batch["image"])
        assert torch.equal(seen.draw.timesteps, first.draw.timesteps)


def test_one_forward_pass_gives_the_references_of_two_batches():
    module, observer = TinyDenoiser(), ModelObserver(TinyDenoiser())
    pictures, names = torch.rand(5, 3, 8, 8), torch.arange(5)
    batches = [{"image": pictures[part], "record": names[part]} for part in (slice(3), slice(3, 5))]
    pairs = [(batch, observer.draw(module, batch, i)) for i, batch in enumerate(batches)]
    for joined, (batch, draw) in zip(observer.references(module, pairs), pairs, strict=True):
        torch.testing.assert_close(joined, observer.references(module, [(batch, draw)])[0])


def test_a_resumed_run_knows_the_references_of_the_bank(monkeypatch, tmp_path):
    def train(epochs, checkpoint=None):
        module = TinyDenoiser()
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[SMPLoRA(bank=1, interval=1, **SMALL)],
            enable_checkpointing=False,
            **options,
        )
        trainer.fit(module, split_images(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return trainer, weights(module)

    through = train(3)[1]
    train(2)[0].save_checkpoint(tmp_path / "two.ckpt")
    computed, references = [], ModelObserver.references

    def spy(self, module, pairs):
        computed.append(len(pairs))
        return references(self, module, pairs)

    monkeypatch.setattr(ModelObserver, "references", spy)
    resumed = train(3, tmp_path / "two.ckpt")[1]
    assert set(computed) == {1}  # the members' alone: in other company the auxiliaries' could differ in the last bit
    assert all(torch.equal(value, through[name]) for name, value in resumed.items())
