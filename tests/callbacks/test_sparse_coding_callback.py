"""The sparse-coding defence in a run: what it replaces, learns, logs, keeps and refuses."""

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_privacy.callbacks import SparseCoding
from lightning_privacy.callbacks.sparse_coding.auto_lambda import search_lambda
from lightning_privacy.callbacks.sparse_coding.layers import SparseCode2d
from lightning_privacy.callbacks.sparse_coding.warm_up import warm_up
from lightning_privacy.core.manifest import load_defended
from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.modules.classifier import ImageClassifier
from lightning_privacy.properties import Property
from lightning_privacy.resources import configs_folder
from lightning_privacy.testing.dummy_defences import Gained
from lightning_privacy.testing.fitting import compare, fit, quiet, trainer
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_classifier import TinyClassifier
from lightning_privacy.testing.toy_data import ToyImages


class Wrapped(L.LightningModule):
    """Any network as a module without protocols."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch["image"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _sparse(module):
    return {name: part for name, part in module.named_modules() if isinstance(part, SparseCode2d)}


def _vgg11():
    from torchvision.models.vgg import cfgs, make_layers

    return nn.Sequential(make_layers(cfgs["A"]), nn.Flatten(), nn.Linear(512, 4))


def _resnet18():
    import timm

    return timm.create_model("resnet18", num_classes=4)


@pytest.mark.parametrize(
    ("build", "names"),
    [(_resnet18, {"network.conv1", "network.layer1.0.conv1"}), (_vgg11, {"network.0.0", "network.0.3"})],
)
def test_the_first_two_convolutions_of_a_foreign_network_become_sparse_codes_and_it_trains(build, names, tmp_path):
    module = Wrapped(build())
    shapes = []
    hooks = [module.get_submodule(n).register_forward_hook(lambda m, i, o: shapes.append(o.shape)) for n in names]
    module.eval().network(torch.rand(2, 3, 32, 32))
    [hook.remove() for hook in hooks]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    fitted = fit(tmp_path, module.train(), ToyImages(4, 32, 2), [SparseCoding(iters=3)], limit_train_batches=1)
    found = _sparse(module)
    assert set(found) == names and all(isinstance(layer, SparseCode2d) for layer in found.values())
    now = []
    for layer in found.values():
        layer.register_forward_hook(lambda m, i, o: now.append(o.shape))
    module.eval().network(torch.rand(2, 3, 32, 32))
    assert sorted(now) == sorted(shapes)
    moved = [k for k, v in fitted.weights.items() if k in before and not torch.equal(v, before[k])]
    assert len(moved) > 5 and all(v.isfinite().all() for v in fitted.weights.values())


def test_a_network_built_by_the_classifier_is_defended_before_its_optimizer_is_made(tmp_path):
    module = ImageClassifier("split_cnn", classes=4, image_size=16)
    fit(tmp_path, module, ToyImages(16, 16, 8), [SparseCoding(lam=0.25, kernel_size=5, iters=4)])
    assert set(_sparse(module)) == {"network.first_part.0", "network.first_part.4"}
    assert _sparse(module)["network.first_part.4"].lam == 0.25


def test_names_choose_the_convolutions_and_what_matches_nothing_is_one_clear_error(tmp_path):
    module = TinyClassifier()
    report = SparseCoding(names=["*.conv2"], kernel_size=5).surgery(module)
    assert report.layers == ("network.conv2",) and set(_sparse(module)) == {"network.conv2"}
    assert module.network.conv2.kernel_size == (5, 5) and module.network.conv2.padding == (2, 2)
    with pytest.raises(NoEffectError, match=r"conv7"):
        fit(tmp_path, TinyClassifier(), plain_images(8), [SparseCoding(names=["*.conv7"])])
    with pytest.raises(NoEffectError, match="first 3 convolutions"):
        SparseCoding(layers=3).surgery(TinyClassifier())


def test_a_convolution_that_cannot_be_replaced_is_named():
    module = Wrapped(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)))
    with pytest.raises(InputError, match=r"`network\.0`.*groups=2"):
        SparseCoding(layers=1).surgery(module)


def test_surgery_repeats_itself_also_where_another_defence_has_wrapped_its_layers():
    module, defence = TinyClassifier(), SparseCoding()
    first = defence.surgery(module)
    weights = {name: layer.weight.clone() for name, layer in _sparse(module).items()}
    again = defence.surgery(module)
    assert (again.layers, again.layout, first.parameters_added) == (first.layers, first.layout, again.parameters_added)
    assert first.parameters_added == -sum(p.numel() for n, p in TinyClassifier().named_parameters() if "conv" in n)
    replace_modules(module, Gained, names=["network.conv1"], types=SparseCode2d)
    wrapped = defence.surgery(module)
    assert wrapped.layers == first.layers and len(_sparse(module)) == 2
    assert torch.equal(module.network.conv1.inner.weight, weights["network.conv1"])


def test_the_dictionary_is_a_function_of_seed_and_name_alone():
    modules = [TinyClassifier(seed=k) for k in range(3)]
    for module, seed in zip(modules, (0, 0, 1), strict=True):
        torch.rand(1)
        SparseCoding(seed=seed).surgery(module)
    one, two, three = (module.network.conv1.weight for module in modules)
    assert torch.equal(one, two) and not torch.allclose(one, three, atol=0.01)


@pytest.mark.parametrize(("dictionary", "moves"), [("fixed", False), ("hebbian", True), ("gradient", True)])
def test_which_dictionaries_move_in_training_and_their_norms(dictionary, moves, tmp_path):
    start = TinyClassifier()
    SparseCoding().surgery(start)
    fitted = fit(tmp_path, TinyClassifier(), plain_images(8), [SparseCoding(dictionary=dictionary, iters=4)])
    for name, layer in _sparse(fitted.module).items():
        assert torch.equal(layer.weight, _sparse(start)[name].weight) is not moves
        assert torch.allclose(layer.atoms().flatten(1).norm(dim=1), torch.ones(layer.out_channels), atol=1e-5)


def test_energy_activity_and_residual_are_logged_for_each_layer(tmp_path):
    fitted = fit(tmp_path, TinyClassifier(), plain_images(8), [SparseCoding(iters=4)], log_every_n_steps=1)
    logged = {k: float(v) for k, v in fitted.trainer.callback_metrics.items() if "sparse_coding" in k}
    assert set(logged) == {
        f"defence/sparse_coding/{what}/network.{layer}"
        for what in ("energy", "active", "residual")
        for layer in ("conv1", "conv2")
    }
    assert logged["defence/sparse_coding/energy/network.conv1"] > 1
    assert all(0 < v < 1 for k, v in logged.items() if "energy" not in k)


def test_a_checkpoint_is_loaded_with_its_dictionaries(tmp_path):
    saver = ModelCheckpoint(tmp_path, "x")
    callbacks = [SparseCoding(iters=4, dictionary="hebbian", lam=0.3), saver]
    fitted = fit(tmp_path, TinyClassifier(), plain_images(8), callbacks, enable_checkpointing=True)
    loaded = load_defended(TinyClassifier(seed=5), saver.best_model_path)
    assert not compare(dict(loaded.state_dict()), fitted.weights)
    pictures = torch.rand(2, 3, 8, 8)
    assert loaded.network.conv1.lam == 0.3
    assert torch.equal(loaded.eval()(pictures), fitted.module.eval()(pictures))


# --- warm-up ---------------------------------------------------------------------------------------------------


def _energies(module):
    out = {}
    for name, layer in _sparse(module).items():
        layer.train(), setattr(layer, "measure", True)
        out[name] = layer
    data = plain_images(32)
    data.setup("fit")
    with torch.no_grad():
        module(torch.stack([data.dataset[i]["image"] for i in range(32)]))
    return {name: layer.measures.energy.item() for name, layer in out.items()}


def test_the_warm_up_lowers_the_energy_and_touches_nothing_else(tmp_path):
    how = {"iters": 4, "eta": 0.1, "warm_up_batch_size": 8}
    cold = fit(tmp_path, TinyClassifier(), plain_images(8), [SparseCoding(**how)], max_steps=1)
    warm = fit(tmp_path, TinyClassifier(), plain_images(8), [SparseCoding(**how, warm_up_epochs=6)], max_steps=1)
    before, after = _energies(cold.module), _energies(warm.module)
    assert after["network.conv1"] < 0.95 * before["network.conv1"]
    assert not compare(warm.random_state, cold.random_state)
    changed = {k for k in cold.weights if not torch.equal(cold.weights[k], warm.weights[k])}
    # One step of training on other codes moves the layers behind them, and nothing else.
    assert changed <= {
        "network.conv1.weight",
        "network.conv2.weight",
        "network.head.weight",
        "network.head.bias",
        "adapter.weight",
    }


def test_the_warm_up_comes_once_in_the_life_of_a_run(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "lightning_privacy.callbacks.sparse_coding.callback.warm_up",
        lambda *a, **k: calls.append(k) or warm_up(*a, **k),
    )
    module, data, defence = TinyClassifier(), plain_images(8), SparseCoding(iters=2, warm_up_epochs=1)
    saver = ModelCheckpoint(tmp_path, "x", every_n_train_steps=1)
    running = trainer(tmp_path, [defence, saver], max_epochs=1, enable_checkpointing=True)
    with quiet():
        running.fit(module, data)
        running.fit_loop.max_epochs = 2
        running.fit(module, data)
    assert len(calls) == 1
    again = [SparseCoding(iters=2, warm_up_epochs=1), ModelCheckpoint(tmp_path, "x", every_n_train_steps=1)]
    fit(
        tmp_path,
        TinyClassifier(),
        plain_images(8),
        again,
        ckpt_path=saver.best_model_path,
        max_epochs=3,
        enable_checkpointing=True,
    )
    assert len(calls) == 1


def _fit_on_rank(folder):
    defence = SparseCoding(iters=2, dictionary="hebbian", eta=0.1, warm_up_epochs=2, warm_up_batch_size=7)
    fitted = fit(folder, TinyClassifier(), plain_images(4), [defence], strategy="ddp", devices=2, max_steps=2)
    return fitted.weights


@pytest.mark.dist
def test_after_warm_up_and_steps_two_ranks_hold_the_same_dictionary_as_one_process(rank_pool, tmp_path):
    here, there = rank_pool.run(_fit_on_rank, str(tmp_path))
    assert not compare(here, there)
    defence = SparseCoding(iters=2, dictionary="hebbian", eta=0.1, warm_up_epochs=2, warm_up_batch_size=7)
    alone = fit(tmp_path, TinyClassifier(), plain_images(8), [defence], max_steps=2).weights
    assert not compare(here, alone, tolerance=1e-5)
    start = TinyClassifier()
    SparseCoding().surgery(start)
    assert not torch.allclose(here["network.conv2.weight"], start.network.conv2.weight, atol=1e-3)


class _NoForward(TinyClassifier):
    def forward(self, images):
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        return self.network(batch["image"]).square().mean()


class _Elsewhere(_NoForward):
    def forward(self, images):
        return self.network.conv1(images)


class _Conditional(_NoForward):
    def forward(self, images, timesteps):
        return self.network(images)


class _Stream(L.LightningDataModule):
    def train_dataloader(self):
        return [{"image": torch.rand(2, 3, 8, 8), "label": torch.zeros(2, dtype=torch.long)}]


@pytest.mark.parametrize(
    ("module", "data", "words"),
    [
        (_NoForward, plain_images, "forward"),
        (_Conditional, plain_images, "of pictures alone"),
        (_Elsewhere, plain_images, "all sparse layers"),
        (TinyClassifier, _Stream, "map-style"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused_with_the_remedy(module, data, words, tmp_path):
    with pytest.raises(InputError, match=words) as refused:
        fit(tmp_path, module(), data(), [SparseCoding(iters=2, warm_up_epochs=1)], limit_val_batches=0)
    assert "warm_up_epochs: 0" in str(refused.value)


# --- declarations ----------------------------------------------------------------------------------------------


def test_only_dictionaries_learned_beside_the_loss_break_its_privacy():
    for how, private in (({}, True), ({"dictionary": "hebbian"}, False), ({"warm_up_epochs": 1}, False)):
        breaks = SparseCoding(**how).breaks
        assert Property.STABLE_STATE_DICT in breaks
        assert (Property.SIDE_STATE_PRIVATE not in breaks) is private


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lam": -0.5}, "`lam`"),
        ({"layers": 0}, "`layers`"),
        ({"names": []}, "`names`"),
        ({"iters": 0}, "`iters`"),
        ({"warm_up_epochs": -1}, "`warm_up_epochs`"),
        ({"transfer": "hard"}, "convex"),
        ({"lam": "auto"}, "search_lambda"),
    ],
)
def test_arguments_are_checked_at_once(wrong, words):
    with pytest.raises(InputError, match=words):
        SparseCoding(**wrong)


@pytest.mark.parametrize("name", ["", "released", "standard", "learned"])
def test_the_fragments_are_the_class_methods(name):
    text = (configs_folder() / "defences" / f"sparse_coding{name and '_' + name}.yaml").read_text()
    given = yaml.safe_load(text)["defences"]["sparse_coding"]
    defence = getattr(SparseCoding, name)() if name else SparseCoding()
    assert SparseCoding(**given).init_args == defence.init_args


# --- the search for lambda -------------------------------------------------------------------------------------


class _Scores(L.LightningModule):
    """Logs an accuracy that falls with lambda."""

    def __init__(self, lam):
        super().__init__()
        self.accuracy, self.weight = 0.9 - 0.1 * (lam or 0.0), nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.square().sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", self.accuracy, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_search_takes_the_largest_lambda_within_the_budget(tmp_path):
    def build(lam):
        return trainer(tmp_path, max_epochs=1, limit_train_batches=1), _Scores(lam), plain_images(8)

    with quiet():
        found = search_lambda(build, [1.5, 0.1, 0.5], budget=0.06)
        assert found.best == 0.5 and found.undefended == pytest.approx(0.9)
        assert found.accuracies == pytest.approx({0.1: 0.89, 0.5: 0.85, 1.5: 0.75})
        with pytest.raises(InputError, match="raise the budget"):
            search_lambda(build, [1.5], budget=0.01)
        with pytest.raises(InputError, match="val/accuracy"):
            search_lambda(build, [1.5], budget=0.01, metric="val/f1")
    with pytest.raises(InputError, match="at least one lambda"):
        search_lambda(build, [], budget=0.1)


def test_the_search_trains_the_defence_itself(tmp_path):
    def build(lam):
        defences = [] if lam is None else [SparseCoding(lam=lam, iters=2)]
        return trainer(tmp_path, defences, max_epochs=1), TinyClassifier(), plain_images(8)

    with quiet():
        found = search_lambda(build, [0.1], budget=1.0)
    assert found.best == 0.1 and 0 <= found.accuracies[0.1] <= 1
