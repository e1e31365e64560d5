"""The inversion audit: attackers move and the target does not, and no choice ever sees a victim."""

from functools import partial

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from lightning_privacy.attacks.inversion.selection import Selection
from lightning_privacy.attacks.inversion.target import FitRecord
from lightning_privacy.callbacks import InversionAudit
from lightning_privacy.callbacks.audits import inversion_tap
from lightning_privacy.callbacks.audits.inversion_audit import InversionPlan, audit_inversion
from lightning_privacy.callbacks.audits.inversion_pictures import read_audit_pictures
from lightning_privacy.callbacks.audits.inversion_results import ladder_notes, weakness_notes
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError, NoEffectError, SplitError
from lightning_privacy.metrics.functional.reconstruction import paired_similarity
from lightning_privacy.testing.settings import disc_classifier, plain_images, split_images


class Cheat:
    """An attack on a tap that is the picture itself; it notes what it was given."""

    name, access = "cheat", "queries"

    def __init__(self, noise=0.0):
        self.noise, self.seen = noise, []

    def fit(self, target, aux, aux_val, seed):
        self.seen += [aux, aux_val]
        return FitRecord(steps=1)

    def reconstruct(self, target, observed, seed):
        self.seen.append(observed)
        noise = self.noise * torch.randn(observed.shape, generator=torch.Generator().manual_seed(seed))
        return observed + noise


class Open(L.LightningModule):
    """A model whose first layer hides nothing."""

    def __init__(self):
        super().__init__()
        self.front, self.head = nn.Identity(), nn.Linear(192, 4)

    def logits(self, batch):
        return self.head(self.front(batch["image"]).flatten(1))


@pytest.fixture(scope="module")
def split():
    made = split_images()
    made.setup("fit")
    return made


def plan(*attacks, **more):
    fields = {
        "layers": {"split": "front"},
        "attacks": lambda: attacks,
        "victims": 10,
        "ceiling": False,
        "bootstrap": 50,
    }
    return InversionPlan(**{**fields, **more})


def by_name(results):
    return {r.attack: r for r in results}


def test_numbers_are_those_of_the_reconstructions(split):
    results, sheets = audit_inversion(Open(), split, plan(Cheat(0.05)))
    found = by_name(results)
    pictures = read_audit_pictures(Open(), split, 10, 0)
    for kind in ("private", "heldout"):
        cheat, best = found[f"split/{kind}/cheat"], found[f"split/{kind}/strongest_per_victim"]
        assert cheat.n == {kind: 10} and best.strongest and not cheat.strongest
        assert best.extra["chosen"] == {"cheat": 10}
        truth = paired_similarity(sheets[kind][1], pictures.victims[kind][:8])["psnr"]
        assert cheat.extra["per_victim"]["psnr"][:8] == pytest.approx(truth.tolist(), rel=1e-4)
        assert cheat.metrics["retrieval"].value == 1.0
        assert cheat.metrics["psnr"].low < cheat.metrics["psnr"].value < cheat.metrics["psnr"].high
        floor = found[f"{kind}/class_mean"]
        assert floor.family == "inversion_reference" and floor.metrics["psnr"].value < cheat.metrics["psnr"].value
        gain = cheat.metrics["psnr"].value - floor.metrics["psnr"].value
        assert cheat.metrics["gain_over_floor_db"].value == pytest.approx(gain, rel=1e-5)


def test_attackers_are_never_shown_a_victim(split):
    cheat = Cheat()
    audit_inversion(Open(), split, plan(cheat))
    pictures = read_audit_pictures(Open(), split, 10, 0)
    victims = torch.cat(list(pictures.victims.values())).flatten(1)
    own, val = cheat.seen[0].flatten(1), cheat.seen[1].flatten(1)
    assert len(own) + len(val) == len(split.indices("attack_nonmember"))
    assert float(torch.cdist(torch.cat([own, val]), victims).min()) > 0
    assert float(torch.cdist(own, val).min()) > 0


def test_the_attacker_moves_and_the_target_does_not(split):
    module = disc_classifier()
    module.configure_model()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    attacks = []

    def make():
        from lightning_privacy.attacks.inversion.trained_decoder import TrainedDecoder

        attacks.append(TrainedDecoder(max_steps=4, width=4, blocks=1))
        return attacks[-1:]

    state = torch.get_rng_state()
    results, _ = audit_inversion(module, split, plan(attacks=make, layers={"logits": None}))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in module.parameters())
    fresh = type(attacks[0].network)((4,), (3, 8, 8), 4, 1)
    moved = [not torch.equal(a, b) for a, b in zip(fresh.parameters(), attacks[0].network.parameters(), strict=True)]
    assert any(moved)
    short = by_name(results)["logits/heldout/trained_decoder"]
    assert not short.converged and "did not converge" in " ".join(short.notes)


def test_watching_a_noisy_model_more_often_undoes_the_noise(split):
    class Noisy(Open):
        def logits(self, batch):
            return self.head(self.front(batch["image"]).flatten(1))

    module = Noisy()
    module.front = _Noise()
    once, often = (
        by_name(audit_inversion(module, split, plan(Cheat(), queries=q))[0])["split/heldout/cheat"].metrics["mse"].value
        for q in (1, 16)
    )
    assert often < once / 4


class _Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def test_the_same_audit_twice_says_the_same(split):
    first, second = (audit_inversion(Open(), split, plan(Cheat(0.1)))[0] for _ in range(2))
    assert [r.metrics for r in first] == [r.metrics for r in second]


def test_a_later_tap_that_gives_more_is_reported_as_a_weak_attack():
    low, high = torch.full((20,), 12.0) + torch.rand(20), torch.full((20,), 15.0) + torch.rand(20)
    (note,) = ladder_notes({"split": low, "logits": high}, 200, 0)
    assert "`split` is too weak" in note and "`logits`" in note
    assert ladder_notes({"split": high, "logits": low}, 200, 0) == []
    assert ladder_notes({"split": high, "logits": high + 0.1 * torch.randn(20)}, 200, 0) == []


def test_an_undefended_split_that_is_not_reconstructed_proves_nothing():
    pictures = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert weakness_notes(pictures, pictures) == []
    (note,) = weakness_notes(torch.full_like(pictures, 0.5), pictures)
    assert "too weak to judge" in note


def test_the_choice_of_the_selection_is_what_is_handed_in(split, monkeypatch):
    def chosen(target, own, own_observed, observed, tried, seed):
        assert "victims" not in set(tried)
        return Selection(tried["b"].victims, ("b",) * len(observed), "b", {"a": 0.1, "b": 0.2}, True)

    monkeypatch.setattr(inversion_tap, "select_strongest", chosen)
    a, b = Cheat(0.3), Cheat(0.1)
    a.name, b.name = "a", "b"
    found = by_name(audit_inversion(Open(), split, plan(a, b))[0])
    best, kept = found["split/heldout/strongest_per_victim"], found["split/heldout/b"]
    assert best.metrics == kept.metrics and best.extra["best_single"] == "b"


def test_a_run_gets_results_pictures_and_logged_values(tmp_path, split):
    module = disc_classifier()
    small = {"trained_decoder": {"max_steps": 4, "width": 4, "blocks": 1}}
    audit = InversionAudit(
        split="network.conv1", taps=["split"], attacks=["trained_decoder"], attack_args=small, victims=8, bootstrap=20
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=[audit], **quiet)
    trainer.fit(module, split_images())
    run = RunFolder(tmp_path)
    names = {r.attack for r in run.results() if r.family == "inversion"}
    assert names == audit.result_names(trainer, module)
    assert "attack/inversion/split/heldout/trained_decoder/psnr" in trainer.callback_metrics
    assert {p.name for p in run.pictures.glob("*.png")} == {
        "reconstructions-private-epoch-0001.png",
        "reconstructions-heldout-epoch-0001.png",
    }
    ceiling = [r for r in run.results() if r.attack == "heldout/decoder_of_the_picture"]
    assert ceiling and "leak" in by_name(run.results())["split/heldout/trained_decoder"].metrics


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"taps": ["layer3"]}, "knows no tap"),
        ({"taps": []}, "given no tap"),
        ({"attacks": ["decoder"]}, "There is no inversion attack `decoder`"),
        ({"attack_args": {"trained_decoder": {"depth": 3}}}, "no argument `depth`"),
        ({"distances": ["lpips"]}, "no distance"),
        ({"victims": 4}, "victims >= 8"),
        ({"attacks": ["trained_decoder", "trained_decoder"]}, "names each attack once"),
    ],
)
def test_wrong_arguments_are_one_clear_error(arguments, words):
    with pytest.raises(InputError, match=words):
        InversionAudit(**arguments)


def test_what_is_missing_is_found_before_training(tmp_path):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    fit = partial(L.Trainer, max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    with pytest.raises(NoEffectError, match="No layer of ImageClassifier is called `network.first`"):
        fit(callbacks=[InversionAudit(split="network.first")]).fit(disc_classifier(), split_images())
    with pytest.raises(SplitError, match="InversionAudit must know who is a member"):
        fit(callbacks=[InversionAudit()]).fit(disc_classifier(), plain_images())
