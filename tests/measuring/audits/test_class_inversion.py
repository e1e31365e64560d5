"""The class-level inversion audit: guided pictures show a class, pictures at random do not, and the judge stands apart."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from lightning_privacy.attacks.inversion.evaluation_classifier import train_evaluation_classifier
from lightning_privacy.attacks.inversion.plug_and_play import PlugAndPlay
from lightning_privacy.callbacks import ClassInversionAudit
from lightning_privacy.callbacks.audits.class_inversion_audit import ClassPlan, audit_classes
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import InputError, MissingProtocolError
from lightning_privacy.testing.toy_data import ToyImages


class Colours(L.LightningModule):
    """A perfect classifier of the toy pictures' colours."""

    def logits(self, batch):
        middle = batch["image"][:, :, 3:5, 3:5].mean((2, 3))
        return -8 * torch.cdist(middle, self.means.to(middle))


class Discs(nn.Module):
    """A generator whose latent is the disc's colour."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, latents):
        picture = torch.full((len(latents), 3, 8, 8), -0.4)
        picture[:, :, 2:6, 2:6] = (self.scale * latents)[:, :, None, None]
        return picture


@pytest.fixture(scope="module")
def split():
    made = MembershipSplit(
        ToyImages(n=96, size=8, batch_size=8),
        fractions={"member": 1 / 3, "aux_nonmember": 1 / 6, "attack_nonmember": 1 / 6, "val": 1 / 12},
    )
    made.setup("fit")
    return made


@pytest.fixture(scope="module")
def module(split):
    made = Colours()
    batches = list(split.loader("member"))
    images, labels = (torch.cat([b[key] for b in batches]) for key in ("image", "label"))
    made.means = torch.stack(
        [images[labels == k][:, :, 3:5, 3:5].mean((0, 2, 3)) for k in range(int(labels.max()) + 1)]
    )
    return made


def weights(tmp_path):
    from safetensors.torch import save_file

    save_file(Discs().state_dict(), tmp_path / "discs.safetensors")
    return str(tmp_path / "discs.safetensors")


def test_scores_guide_the_generator_to_the_class_and_chance_does_not(split, module, tmp_path):
    attack = PlugAndPlay(candidates=60, optimised=4, kept=3, steps=60, lr=0.05, final_crops=4)
    plan = ClassPlan(
        attack, network=Discs(), weights=weights(tmp_path), latent_dim=3, bootstrap=50, evaluation_steps=400
    )
    results, sheet = audit_classes(module, split, plan)
    found = {r.attack: r for r in results}
    guided, random = found["logits/classes/plug_and_play"], found["classes/random_pictures"]
    assert guided.strongest and guided.family == "class_inversion" and random.family == "class_inversion_reference"
    assert guided.extra["judge_accuracy"] > 0.8
    assert guided.metrics["recognised"].value > random.metrics["recognised"].value + 0.3
    assert guided.metrics["feature_distance"].value < random.metrics["feature_distance"].value
    assert guided.metrics["natural_distance"].value == random.metrics["natural_distance"].value > 0
    classes = guided.n["classes"]
    assert guided.n["pictures"] == 3 * classes and [len(row) for row in sheet] == [classes, classes]


def test_a_model_that_says_nothing_gives_nothing(split, module, tmp_path):
    class Silent(Colours):
        def logits(self, batch):
            return 0 * super().logits(batch)

    silent = Silent()
    silent.means = module.means
    attack = PlugAndPlay(candidates=20, optimised=3, kept=3, steps=20, lr=0.05, final_crops=1)
    plan = ClassPlan(
        attack, network=Discs(), weights=weights(tmp_path), latent_dim=3, bootstrap=50, evaluation_steps=400
    )
    found = {r.attack: r for r in audit_classes(silent, split, plan)[0]}
    gain = found["logits/classes/plug_and_play"].metrics["recognised"].value
    assert abs(gain - found["classes/random_pictures"].metrics["recognised"].value) < 0.35


def test_the_attackers_own_pictures_are_ranked_by_the_models_trust(split, module):
    plan = ClassPlan(
        PlugAndPlay(candidates=4, optimised=1, kept=1, steps=1), generator_steps=2, bootstrap=50, latent_dim=2
    )
    found = {r.attack: r for r in audit_classes(module, split, plan)[0]}
    assert found["classes/best_own_pictures"].metrics["recognised"].value > 0.7
    assert not found["logits/classes/plug_and_play"].converged


def test_the_judge_is_a_function_of_its_seed_and_leaves_the_random_state_alone():
    pictures, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    state = torch.get_rng_state()
    one, other = (train_evaluation_classifier(pictures, labels, 2, seed=3, steps=5) for _ in range(2))
    assert torch.equal(one(pictures), other(pictures)) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one(pictures), train_evaluation_classifier(pictures, labels, 2, seed=4, steps=5)(pictures))


def test_a_class_without_training_pictures_is_named(split, module):
    with pytest.raises(InputError, match=r"\[77\] have no training picture"):
        audit_classes(module, split, ClassPlan(PlugAndPlay(), classes=[0, 77]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"classes": []}, "different classes"),
        ({"classes": [1, 1]}, "different classes"),
        ({"most": 0}, "most"),
        ({"generator": nn.Identity()}, "together"),
        ({"generator_weights": "g.safetensors"}, "together"),
        ({"attack_args": {"stepz": 3}}, "stepz"),
        ({"attack_args": {"steps": 0}}, "steps"),
    ],
)
def test_what_cannot_be_attacked_is_refused_at_once(arguments, says):
    with pytest.raises(InputError, match=says):
        ClassInversionAudit(**arguments)


def test_a_module_without_scores_is_refused_before_training():
    class Plain(L.LightningModule):
        pass

    with pytest.raises(MissingProtocolError, match="logits"):
        ClassInversionAudit().on_fit_start(
            L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), Plain()
        )
