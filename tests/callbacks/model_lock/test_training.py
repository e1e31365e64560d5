"""A locked model from the first batch to its use: what each mode trains, what is refused, and what is written down."""

import copy
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_privacy.callbacks.model_lock import functional as math
from lightning_privacy.callbacks.model_lock.batches import take_negatives
from lightning_privacy.callbacks.model_lock.callback import ModelLock
from lightning_privacy.callbacks.model_lock.negatives import negatives_of
from lightning_privacy.callbacks.model_lock.predictor import UnlockedPredictor, key_mark_of
from lightning_privacy.callbacks.model_lock.reject import RejectOutput, add_reject, find_reject, running_statistics
from lightning_privacy.core.manifest import load_defended
from lightning_privacy.core.manifest_record import read_manifest
from lightning_privacy.datamodules.locked import LockedDataModule
from lightning_privacy.editors import LockSecret, NegativePositiveEditor
from lightning_privacy.errors import InputError, ManifestError, NoEffectError, WrongKeyError
from lightning_privacy.modules.classifier import ImageClassifier
from lightning_privacy.properties import Property
from lightning_privacy.secrets.vault import KeyVault
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.tiny_classifier import TinyClassifier
from lightning_privacy.testing.tiny_modules import PlainRegressor
from lightning_privacy.testing.toy_data import ToyImages

SEED = bytes(range(32))
KINDS = ["raw", "wrong_key", "residue"]
MODES = ["edited_only", "wrong_label", "flat", "reject_class", "contrastive"]


def editor(seed=SEED, **settings):
    return NegativePositiveEditor.with_secret(LockSecret(seed=seed), **settings)


def data(n=32, **settings):
    settings = {"editor": editor(), "cache": None, "decoys": 1, "batch_size": 32, **settings}
    return LockedDataModule(ToyImages(n=n, size=8, batch_size=8), **settings)


def lock(mode="contrastive", **settings):
    return ModelLock(mode, **{"rho": 0.0 if mode == "edited_only" else 0.5, **settings})


def classifier():
    module = TinyClassifier(width=8)
    module.optimizer = partial(torch.optim.Adam, lr=0.01)
    return module


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_the_edited_pictures_and_logs_both_accuracies(mode, tmp_path):
    defence, module = lock(mode), classifier()
    fitted = fit(
        tmp_path, module, data(64), [defence], max_epochs=10, limit_val_batches=1.0, check_val_every_n_epoch=10
    )
    logged = fitted.trainer.callback_metrics
    prefix = "defence/model_lock/"
    up, lp = (float(logged[prefix + k]) for k in ("up", "lp"))
    assert up > 0.8, (up, lp)
    assert float(logged[prefix + "gap"]) == pytest.approx(up - lp)
    assert float(logged[prefix + "up_low"]) < up <= float(logged[prefix + "up_high"])
    assert (prefix + "lp_with_reject" in logged) == (mode in ("reject_class", "contrastive"))
    if mode != "edited_only":
        assert lp < 0.5, (mode, lp)
    if prefix + "lp_with_reject" in logged:
        assert float(logged[prefix + "lp_with_reject"]) < 0.1
        # users never see the reject class
        batch = {"image": torch.rand(2, 3, 8, 8), "label": torch.tensor([0, 1])}
        assert module.logits(batch).shape == (2, 4)
        scores = defence.all_scores(module, batch)
        assert scores.shape == (2, 5) and torch.equal(scores[:, :4].argsort(1), module.logits(batch).argsort(1))


def test_the_loss_is_that_of_the_mixture(tmp_path):
    """One step by hand: (1 - rho) cross-entropy over 5 classes of edited pictures + rho that of raw ones sent to the fifth."""
    got = {}

    class Spy(ModelLock):
        def objective(self, step):
            before = copy.deepcopy(step.module.state_dict())
            got["loss"], got["batch"], got["weights"] = super().objective(step), step.batch, before
            return got["loss"]

    module = classifier()
    fit(tmp_path, module, data(), [Spy("reject_class", rho=0.25)], limit_train_batches=1, limit_val_batches=0)
    module.load_state_dict(got["weights"])
    batch, output = got["batch"], find_reject(module)[2]

    def scores(images):
        features = module.embedding_of(images)
        return torch.cat([module.logits({"image": images}).log_softmax(1), output(features)], 1)

    def embedding_of(images):
        seen = []
        with find_reject(module)[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            module.logits({"image": images})
        return seen[0]

    module.embedding_of = embedding_of
    keyed = nn.functional.cross_entropy(scores(batch["image"]), batch["label"])
    raw = nn.functional.cross_entropy(scores(batch["raw"]), torch.full_like(batch["label"], 4))
    assert torch.allclose(got["loss"], 0.75 * keyed + 0.25 * raw, atol=1e-6)


class Watched(ModelLock):
    """Keeps one step: the weights before it, the batch, and the loss."""

    def objective(self, step):
        before, positive = copy.deepcopy(step.module.state_dict()), step.loss.detach().clone()
        loss = super().objective(step)
        self.seen = {"weights": before, "batch": step.batch, "positive": positive, "loss": loss.detach()}
        return loss


def one_step(folder, *given, **settings):
    module, defence = classifier(), Watched(*given, **settings)
    fit(folder, module, data(), [defence], limit_train_batches=1, limit_val_batches=0)
    module.load_state_dict(defence.seen["weights"])
    batch = defence.seen["batch"]
    with torch.no_grad():
        scores = {kind: module.logits({"image": take_negatives(batch, 0, [kind])}) for kind in KINDS}
        turns = module.logits({"image": take_negatives(batch, 0, defence.negatives)})
    return defence, module, scores, turns


def test_wrong_labels_go_to_the_negatives_that_were_asked_for(tmp_path):
    for negatives in (["raw"], ["wrong_key"], ["residue"], ["wrong_key", "raw"], KINDS):
        defence, _, scores, turns = one_step(tmp_path, "wrong_label", negatives=negatives)
        seen = defence.seen
        wrong = math.wrong_labels(seen["batch"]["label"], seen["batch"]["record"], 4)
        negative = nn.functional.cross_entropy(turns, wrong)
        assert torch.allclose(seen["loss"], 0.5 * seen["positive"] + 0.5 * negative, atol=1e-6)
        # each record is one of those kinds, and no other
        of = {kind: (turns - scores[kind]).abs().amax(1) < 1e-6 for kind in KINDS}
        assert torch.stack([of[kind] for kind in negatives]).any(0).all()
        assert all(bool(of[kind].any()) == (kind in negatives) for kind in KINDS)
        assert (Property.PER_SAMPLE_SEPARABLE in defence.breaks) == ("residue" in negatives)


def test_flat_trains_scores_towards_saying_nothing(tmp_path):
    defence, _, _, turns = one_step(tmp_path, "flat", rho=0.25)
    seen = defence.seen
    assert torch.allclose(seen["loss"], 0.75 * seen["positive"] + 0.25 * math.flatness(turns), atol=1e-6)
    assert defence.negatives == ["raw"] and find_reject(classifier()) is None


def test_the_flat_term_of_contrastive_can_be_taken_out(tmp_path):
    losses = {}
    for flat in (True, False):
        defence, _, _, turns = one_step(tmp_path, "contrastive", flat=flat)
        losses[flat], term = defence.seen["loss"], math.flatness(turns)
        assert defence.fresh().flat == flat
    assert torch.allclose(losses[True] - losses[False], 0.5 * term, atol=1e-6) and term > 1e-4


def test_negatives_that_cannot_be_are_refused(tmp_path):
    for wrong in (["secret"], [], ["raw", "raw"]):
        with pytest.raises(InputError, match="name at least one of raw, wrong_key, residue"):
            negatives_of("wrong_label", wrong)
    with pytest.raises(InputError, match="name at least one of"):
        lock("wrong_label", negatives=[])
    with pytest.raises(InputError, match="`mode: edited_only`, which knows none"):
        lock("edited_only", negatives=["raw"])
    with pytest.raises(InputError, match="`flat` is false"):
        lock("wrong_label", flat=False)
    with pytest.raises(InputError, match="`mode` is 'locked'"):
        negatives_of("locked", None)
    with pytest.raises(InputError, match="leave `wrong_key` out"):
        fit(tmp_path, classifier(), data(decoys=0), [lock("wrong_label", negatives=["wrong_key"])])
    # without wrong keys no decoys are needed
    fit(tmp_path, classifier(), data(decoys=0), [lock(negatives=["raw", "residue"])], limit_train_batches=1)


def test_nothing_is_locked_without_edited_pictures(tmp_path):
    plain = ToyImages(n=32, size=8)
    for given, match in (
        (plain, "wrap the data in `LockedDataModule"),
        (data(locked=False), "`locked: false`"),
    ):
        with pytest.raises(NoEffectError, match=match):
            fit(tmp_path, classifier(), given, [lock("wrong_label")])
    with pytest.raises(InputError, match="`decoys: 0`"):
        fit(tmp_path, classifier(), data(decoys=0), [lock()])

    class Dropping(LockedDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {k: v for k, v in batch.items() if k != "raw"}

    with pytest.raises(NoEffectError, match="no raw pictures"):
        fit(tmp_path, classifier(), Dropping(ToyImages(n=32, size=8), editor(), cache=None), [lock("edited_only")])


def test_modules_that_do_not_fit_are_told_what_to_do(tmp_path):
    with pytest.raises(NoEffectError, match="use `mode: wrong_label`"):
        fit(tmp_path, Convolutional(), data(), [lock()])
    with pytest.raises(InputError, match="no linear layer"):
        fit(tmp_path, classifier(), data(), [lock(head="network.conv1")])
    assert fit(tmp_path, Convolutional(), data(), [lock("wrong_label")]).trainer.global_step == 4
    # what has no logits trains on edited pictures, and has no accuracy to log
    fitted = fit(tmp_path, PlainRegressor(), data(), [lock("edited_only")])
    assert "defence/model_lock/up" not in fitted.trainer.callback_metrics
    for wrong in ({"mode": "edited_only", "rho": 0.5}, {"mode": "wrong_label", "rho": 0.0}, {"rho": 1.0}):
        with pytest.raises(InputError, match="`rho`"):
            ModelLock(**wrong)
    for mode in MODES:
        assert lock(mode).fresh().init_args == lock(mode).init_args
    paper = {"mode": "edited_only", "rho": 0.0, "head": "network.head", "negatives": None, "flat": True}
    assert ModelLock.paper(head="network.head").init_args == paper


class Convolutional(L.LightningModule):
    """A user's classifier that knows nothing of us and has no linear layer; its batches may be tuples."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())

    def logits(self, batch):
        return self.network(batch["image"] if isinstance(batch, dict) else batch[0])

    def training_step(self, batch, batch_idx):
        labels = batch["label"] if isinstance(batch, dict) else batch[1]
        return nn.functional.cross_entropy(self.logits(batch), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Pairs(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, torch.arange(8) % 4), batch_size=4)

    val_dataloader = train_dataloader


def test_tuples_will_do(tmp_path):
    module = Convolutional()
    locked = LockedDataModule(Pairs(), editor(), cache=None)
    fitted = fit(tmp_path, module, locked, [lock("wrong_label")], limit_val_batches=1.0)
    assert float(fitted.trainer.callback_metrics["defence/model_lock/up"]) >= 0


def saved(tmp_path, mode="contrastive", epochs=1, **settings):
    keeper = ModelCheckpoint(tmp_path / "kept", "x")
    fit(
        tmp_path, TinyClassifier(), data(**settings), [lock(mode), keeper], enable_checkpointing=True, max_epochs=epochs
    )
    return keeper.best_model_path


def test_a_checkpoint_names_the_key_by_its_fingerprint_alone(tmp_path):
    vault = KeyVault.create(tmp_path / "v.safetensors")
    vault.put("prompt", "a secret text of this test")
    named = NegativePositiveEditor(f"vault:{vault.path}#prompt")
    path = saved(tmp_path, editor=named)
    assert b"a secret text of this test" not in Path(path).read_bytes()
    manifest = read_manifest(torch.load(path, weights_only=True))
    entry = manifest["defences"]["model_lock"]
    assert entry["key_fingerprint"] == named.fingerprint() == key_mark_of(path)
    assert entry["layout"] == {"reject": "network.head"} and entry["init_args"]["mode"] == "contrastive"


def test_a_run_goes_on_with_its_own_key_alone(tmp_path):
    path = saved(tmp_path)
    keeper = ModelCheckpoint(tmp_path / "kept", "x")
    for settings, match in (
        ({"editor": editor(bytes(32))}, "another secret"),
        ({"editor": editor(alpha=0.5)}, "`alpha` 1.0, and this editor has 0.5"),
        ({"editor": editor(block=2)}, "`block` 4, and this editor has 2"),
    ):
        with pytest.raises(WrongKeyError, match=match):
            fit(
                tmp_path,
                TinyClassifier(),
                data(**settings),
                [lock(), keeper],
                ckpt_path=path,
                max_epochs=2,
                enable_checkpointing=True,
            )
    fit(tmp_path, TinyClassifier(), data(), [lock(), keeper], ckpt_path=path, max_epochs=2, enable_checkpointing=True)


def test_the_key_holder_uses_the_model_batch_by_batch(tmp_path):
    path = saved(tmp_path, epochs=12)
    module = load_defended(TinyClassifier(), path, vault=None)
    served = UnlockedPredictor(module, editor(), path)
    inner = ToyImages(n=16, size=8)
    inner.setup("fit")
    grid = inner.dataset.images.mul(255).round().div(255)
    module.eval()
    with torch.no_grad():
        expected = module(editor().edit(grid))
    assert torch.allclose(torch.cat([served(part) for part in grid.split(5)]), expected, atol=1e-5)
    with pytest.raises(WrongKeyError, match="locked with the key"):
        UnlockedPredictor(module, editor(bytes(32)), path)
    with pytest.raises(WrongKeyError, match="locked with the key"):
        UnlockedPredictor(module, editor(alpha=0.5), editor().fingerprint())
    cut = UnlockedPredictor(nn.Flatten(), editor(), editor().fingerprint(), crop=4)
    assert cut(grid).shape == (16, 48)
    with pytest.raises(InputError, match="smaller than `crop`"):
        UnlockedPredictor(nn.Flatten(), editor(), editor().fingerprint(), crop=12)(grid)
    keeper = ModelCheckpoint(tmp_path / "plain", "x")
    fit(tmp_path, TinyClassifier(), ToyImages(n=32, size=8), [keeper], enable_checkpointing=True)
    for wrong in (keeper.best_model_path, tmp_path / "none.ckpt"):
        with pytest.raises(ManifestError, match="cannot be read|no checkpoint of a locked model"):
            UnlockedPredictor(module, editor(), wrong)


def test_the_reject_output_is_added_once_and_starts_alike_everywhere():
    first, second = (ImageClassifier("small_cnn", classes=4, image_size=8) for _ in range(2))
    torch.manual_seed(3)
    for module in (first, second):
        module.configure_model()
    state = torch.get_rng_state()
    names = [add_reject(m, None, "x") for m in (first, second, first)]
    assert torch.equal(state, torch.get_rng_state()) and len(set(names)) == 1
    one, other = (find_reject(m)[2] for m in (first, second))
    assert isinstance(one, RejectOutput) and torch.equal(one.weight, other.weight)
    assert sum(isinstance(m, RejectOutput) for m in first.modules()) == 1
    assert first.logits({"image": torch.rand(2, 3, 8, 8)}).shape == (2, 4) and names[0][0] == "network.head"


def test_negatives_are_normalised_as_in_use():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    before = copy.deepcopy(net.state_dict())
    net[1].running_mean.fill_(0.5)
    x = torch.rand(4, 3, 8, 8)
    with running_statistics(net):
        assert not net[1].training and net[2].training
        kept = net[1](net[0](x))
    assert net[1].training and torch.equal(net[1].running_var, before["1.running_var"])
    net.eval()
    assert torch.allclose(kept, net(x))
