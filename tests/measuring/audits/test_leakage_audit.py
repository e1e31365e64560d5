"""The leakage audit: the update is the module's own, attackers see nothing but it, and the module stays as it was."""

from dataclasses import replace

import pytest
import torch

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.joint import JointOptimisation, PooledJoint
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import target_of
from lightning_privacy.attacks.leakage.wrong_key import WrongKey
from lightning_privacy.callbacks.audits.leakage import LeakageAudit
from lightning_privacy.callbacks.audits.leakage_attacks import build_leakage_attacks
from lightning_privacy.callbacks.audits.leakage_attempts import Attempt, attempt_all, strongest_of, update_distance
from lightning_privacy.callbacks.audits.leakage_audit import LeakagePlan, audit_leakage
from lightning_privacy.callbacks.audits.leakage_conditions import Sharing
from lightning_privacy.callbacks.audits.leakage_pictures import read_leakage_pictures
from lightning_privacy.callbacks.audits.leakage_results import Made, leakage_result, score_pictures
from lightning_privacy.callbacks.key_lock.protect import protect
from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import split_images
from lightning_privacy.testing.smooth_classifier import SmoothClassifier

SEARCH = DeepLeakage(evaluations=50, restarts=1)
QUICK = {"dlg": {"evaluations": 4, "restarts": 1}, "inverting_gradients": {"steps": 3, "restarts": 1}}


class Kept(Defence):
    """Shares the head and nothing else."""

    name, slots = "kept", frozenset({Slot.GRADIENT})

    def defended_update(self, gradients, generator):
        return {n: g for n, g in gradients.items() if "head" in n}

    def transform_gradients(self, module, optimizer):
        pass


@pytest.fixture(scope="module")
def split():
    made = split_images()
    made.setup("fit")
    return made


def plan(**more):
    fields = {"attacks": lambda: {"dlg": SEARCH}, "victims": 2, "bootstrap": 50, "controls": ("known_secrets",)}
    return LeakagePlan(**{**fields, **more})


def by_name(results):
    return {r.attack: r for r in results}


def test_an_undefended_update_gives_its_record_and_class_away(split):
    results, sheets = audit_leakage(SmoothClassifier(), split, plan(), "initial")
    found = by_name(results)
    best = found["initial/batch1/undefended/strongest_per_victim"]
    assert best.strongest and best.family == "leakage" and best.n == {"updates": 2, "records": 2}
    assert best.metrics["success"].value == best.metrics["label_accuracy"].value == best.metrics["retrieval"].value == 1
    assert best.metrics["retrieval_rank"].value == 1 and best.extra["candidates"] == 32
    assert best.metrics["ssim"].value > 0.95 and best.metrics["gain_over_floor_db"].value > 10
    assert not best.metrics["ssim"].valid and "at least 8" in best.metrics["ssim"].reason
    assert not any("proves nothing" in note for note in best.notes)
    assert found["initial/batch1/undefended/label_inference"].metrics["label_accuracy"].value == 1
    assert {r.attack for r in results if r.family == "leakage_reference"} == {
        "batch1/mean_picture",
        "batch1/class_mean",
        "batch1/nearest_own",
    }
    (rows,) = sheets.values()
    pictures = read_leakage_pictures(SmoothClassifier(), split, 2, 0)
    assert torch.equal(rows[0], pictures.victims) and len(rows) == 2
    assert float((rows[1] - rows[0]).square().mean()) < 1e-3


def test_an_attack_that_fails_on_the_undefended_update_proves_nothing(split):
    short = plan(attacks=lambda: {"dlg": DeepLeakage(evaluations=2, restarts=1)})
    found = by_name(audit_leakage(SmoothClassifier(), split, short, "initial")[0])
    best = found["initial/batch1/undefended/strongest_per_victim"]
    assert any("proves nothing" in note for note in best.notes)
    assert not best.converged and any("no evidence of privacy" in note for note in best.notes)


def test_records_of_a_batch_are_matched_to_the_originals(split):
    found = by_name(audit_leakage(SmoothClassifier(), split, plan(batch_sizes=(2,)), "initial")[0])
    best = found["initial/batch2/undefended/strongest_per_victim"]
    assert best.n == {"updates": 2, "records": 4} and best.metrics["success"].value == 1


def test_a_secret_hides_and_whoever_knows_it_does_not_notice_it(split):
    module = SmoothClassifier(norm=True)
    protect(module, key_length=16, spread=0.5)
    attacks = {"dlg": SEARCH, "wrong_key": WrongKey(SEARCH), "joint": JointOptimisation(SEARCH)}
    controls = ("known_secrets", "ordinary_norm")
    results, _ = audit_leakage(
        module, split, plan(attacks=lambda: attacks, controls=controls, defended=True), "initial"
    )
    found = by_name(results)
    ssim = {name: found[f"initial/batch1/{name}"].metrics["aligned_ssim"].value for name in (
        "defended/wrong_key", "defended/joint", "known_secrets/dlg", "ordinary_norm/dlg"
    )}  # fmt: skip
    assert ssim["known_secrets/dlg"] > 0.8 and ssim["ordinary_norm/dlg"] > 0.8
    assert ssim["defended/wrong_key"] < 0.7 < ssim["known_secrets/dlg"]
    assert ssim["defended/joint"] > ssim["defended/wrong_key"]
    assert found["initial/batch1/defended/strongest_per_victim"].extra["chosen"] == {"joint": 2}
    assert "initial/batch1/defended/dlg" not in found
    controls = [r for r in results if r.family == "leakage_control"]
    assert controls and not any(r.strongest for r in controls)


def test_updates_that_share_secrets_are_attacked_together_once_and_each_gets_its_own_part(split, monkeypatch):
    module = SmoothClassifier(norm=True)
    protect(module, key_length=16, spread=0.5)
    calls, search_all = [], PooledJoint.reconstruct_rounds

    def counted(self, rounds, seed):
        calls.append(len(rounds))
        return search_all(self, rounds, seed)

    monkeypatch.setattr(PooledJoint, "reconstruct_rounds", counted)
    attacks = {"joint_pooled": PooledJoint(SEARCH, updates=2)}
    results, _ = audit_leakage(
        module, split, plan(attacks=lambda: attacks, victims=3, defended=True, controls=()), "initial"
    )
    found = by_name(results)["initial/batch1/defended/joint_pooled"]
    assert calls == [2, 1]
    # each reconstruction is of its own record: it finds that one among all
    assert found.metrics["retrieval"].value == 1 and found.metrics["aligned_ssim"].value > 0.8


def test_what_a_defence_withholds_is_withheld_from_attackers_and_not_from_the_control(split):
    watch = Watching()
    how = plan(
        attacks=lambda: {"watching": watch}, update_defences=(Kept(),), defended=True, controls=("plain_update",)
    )
    found = by_name(audit_leakage(SmoothClassifier(), split, how, "trained")[0])
    assert {"trained/batch1/defended/watching", "trained/batch1/plain_update/watching"} <= set(found)
    assert [len(update.values) for update in watch.seen] == [2, 4, 2, 4]
    assert set(watch.seen[0].values) == {"module.network.head.weight", "module.network.head.bias"}


class Watching:
    """An attack that keeps what it was given."""

    name, access, estimates_secrets = "watching", "all", True

    def __init__(self):
        self.seen = []

    def reconstruct(self, target, update, seed):
        self.seen.append(update)
        return Recovered(torch.full((update.n_records, 3, 8, 8), 0.5), torch.zeros(update.n_records).long(), 1.0, True)


def test_what_is_shared_is_what_was_asked_for(split):
    from lightning_privacy.attacks.leakage.update import LocalTraining

    watch = Watching()
    told = Sharing("train", None, statistics=True, tells_labels=True)
    audit_leakage(
        SmoothClassifier(norm=True), split, plan(attacks=lambda: {"watching": watch}, sharing=told), "initial"
    )
    steps = Sharing("eval", lambda n: LocalTraining(2, 0.1, n))
    audit_leakage(
        SmoothClassifier(norm=True), split, plan(attacks=lambda: {"watching": watch}, sharing=steps), "initial"
    )
    one, other = watch.seen[0], watch.seen[2]
    labels = read_leakage_pictures(SmoothClassifier(), split, 2, 0).labels
    assert one.kind == "gradient" and one.labels.tolist() == labels[:1].tolist()
    assert set(one.statistics) == {"module.network.norm1.running_mean", "module.network.norm1.running_var"}
    assert other.kind == "difference" and other.mode == "eval" and other.labels is None and not other.statistics
    assert other.local.steps == 2


def test_layers_are_named_as_in_the_module_and_extending_attacks_take_the_named_search():
    made = build_leakage_attacks(
        ["partial", "wrong_key"],
        {
            "partial": {"layers": ["network.head"]},
            "wrong_key": {"attack": "inverting_gradients"},
            "inverting_gradients": {"steps": 7},
        },
    )
    assert made["partial"].layers == ("module.network.head",) and made["wrong_key"].attack.steps == 7


def test_every_update_defence_is_attacked_by_one_who_knows_it(split):
    from lightning_privacy.callbacks.audits.leakage_attacks import informed_attacks_of
    from lightning_privacy.callbacks.clip_and_noise.callback import ClipAndNoise
    from lightning_privacy.callbacks.gradient_noise.callback import GradientNoise
    from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning
    from lightning_privacy.callbacks.key_lock.callback import KeyLock

    found = informed_attacks_of([ClipAndNoise(), GradientNoise(), GradientPruning(), KeyLock()], SEARCH, 2)
    assert {"clipped_likelihood", "survivors"} <= set(found.own) and not found.notes
    assert all(attack.attack == SEARCH for attack in found.own.values())
    assert found.registered == ("inverting_gradients", "joint", "known_lock")


def gradient():
    return share_update(SmoothClassifier().network, torch.rand(1, 3, 8, 8), torch.tensor([1]))


def attempt(distance, loss=1.0, value=0.0):
    return Attempt(torch.full((1, 3, 8, 8), value), torch.tensor([0]), loss, 2.0, distance, True)


def test_the_strongest_explains_the_update_best_whatever_the_record_is():
    assert strongest_of({"a": attempt(0.2), "b": attempt(0.1), "c": attempt(float("nan"))}) == "b"
    assert strongest_of({"a": attempt(None, 0.5), "b": attempt(0.0, 1.5)}) == "a"
    assert strongest_of({"a": attempt(None, 0.0), "b": attempt(0.1, 1e-9)}) == "a"


def test_a_search_that_fits_the_noise_of_a_defence_is_no_candidate_beside_one_that_knows_it(split):
    class Fitting(Watching):
        def reconstruct(self, target, update, seed):
            return replace(super().reconstruct(target, update, seed), matching_loss=1e-9, start_loss=1.0)

    attacks = {"dlg": Fitting(), "joint": Fitting(), "knowing": Watching()}
    for changed, names in ((True, ("knowing",)), (False, ("dlg", "joint", "knowing"))):
        made = attempt_all(
            target_of(SmoothClassifier().network, (3, 8, 8), 4), gradient(), attacks, changed, 0, ["knowing"]
        )
        assert made.candidates == names


def test_a_draw_that_an_attack_searched_for_cannot_be_simulated_without_it():
    target = target_of(SmoothClassifier().network, (3, 8, 8), 4)
    found = Recovered(torch.rand(1, 3, 8, 8), torch.tensor([1]), 0.1, True)
    assert update_distance(target, gradient(), found) is not None
    assert update_distance(target, gradient(), replace(found, secrets={"noise": torch.ones(2)})) is None
    assert update_distance(target, gradient(), replace(found, labels=torch.tensor([-1]))) is None


def test_no_choice_reads_the_record(split, monkeypatch):
    """Two attacks of equal pictures but for the truth: the one that is the record itself must not be preferred."""
    module = SmoothClassifier()
    pictures = read_leakage_pictures(module, split, 2, 0)
    left = list(pictures.victims)

    class Truth:
        name, access, estimates_secrets = "truth", "the record", False

        def reconstruct(self, target, update, seed):
            return Recovered(left.pop(0)[None], torch.tensor([3]), 0.5, True, start_loss=1.0)

    class Grey(Truth):
        name = "grey"

        def reconstruct(self, target, update, seed):
            return Recovered(torch.full((1, 3, 8, 8), 0.5), torch.tensor([3]), 0.1, True, start_loss=1.0)

    from lightning_privacy.callbacks.audits import leakage_attempts

    monkeypatch.setattr(leakage_attempts, "update_distance", lambda *arguments: None)
    results, _ = audit_leakage(module, split, plan(attacks=lambda: {"truth": Truth(), "grey": Grey()}), "initial")
    best = by_name(results)["initial/batch1/undefended/strongest_per_victim"]
    assert best.extra["chosen"] == {"grey": 2}


def test_the_module_stays_as_it_was_and_the_same_audit_says_the_same(split):
    module = SmoothClassifier(norm=True).train()
    module.network.conv1.eval()
    before = {n: v.clone() for n, v in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    state = torch.get_rng_state()
    quick = plan(attacks=lambda: {"dlg": DeepLeakage(evaluations=5, restarts=1)})
    first, second = (audit_leakage(module, split, quick, "initial")[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert modes == [part.training for part in module.modules()]
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert [r.metrics for r in first] == [r.metrics for r in second]


def test_scores_know_a_perfect_reconstruction_and_one_whose_brightness_is_lost():
    g = torch.Generator().manual_seed(0)
    truth, others = torch.rand(4, 3, 16, 16, generator=g), torch.rand(10, 3, 16, 16, generator=g)
    perfect, dim, noise = (
        score_pictures(found, truth, others).values for found in (truth, 0.2 + 0.3 * truth, truth.flip(0))
    )
    assert perfect["psnr"].tolist() == [100.0] * 4 and perfect["retrieval_rank"].tolist() == [1.0] * 4
    assert float(dim["psnr"].max()) < 15 and float(dim["aligned_ssim"].min()) > 0.999
    assert dim["success"].tolist() == dim["retrieval"].tolist() == [1.0] * 4
    assert noise["success"].tolist() == noise["retrieval"].tolist() == [0.0] * 4


def test_intervals_are_over_updates_and_need_eight_of_them():
    g = torch.Generator().manual_seed(1)
    truth = torch.rand(16, 3, 8, 8, generator=g)
    scores = score_pictures((truth + 0.1 * torch.randn(truth.shape, generator=g)).clamp(0, 1), truth, truth[:0])
    made = Made("leakage", "a", "x", truth, matching_loss=(0.1,) * 8, converged=(True,) * 8)
    fields = {"floor": None, "seed": 0, "bootstrap": 100, "split_hash": "", "step": 0, "epoch": 0, "candidates": 16}
    metric = leakage_result(made, scores, 2, **fields).metrics["psnr"]
    assert metric.valid and metric.low < metric.value < metric.high
    few = leakage_result(replace(made, converged=(True,) * 4), scores, 4, **fields)
    assert not few.metrics["psnr"].valid and few.n == {"updates": 4, "records": 16}


def test_a_run_is_audited_before_and_after_training(tmp_path):
    audit = LeakageAudit(attacks=["dlg"], attack_args=QUICK, victims=8, bootstrap=20, grid=3)
    run = fit(tmp_path, SmoothClassifier(), split_images(), [audit])
    names = {r.attack for r in RunFolder(tmp_path).results() if r.family == "leakage"}
    assert names == {
        f"{state}/batch1/undefended/{name}"
        for state in ("initial", "trained")
        for name in ("dlg", "strongest_per_victim", "label_inference")
    }
    assert audit.result_names(run.trainer, run.module) <= names
    assert "attack/leakage/initial/batch1/undefended/dlg/ssim" in run.trainer.callback_metrics
    assert {p.name for p in RunFolder(tmp_path).pictures.glob("*.png")} == {
        "leakage-initial-batch1-epoch-0000.png",
        "leakage-trained-batch1-epoch-0001.png",
    }


def test_attacks_that_know_the_runs_defences_run_unasked(tmp_path):
    from lightning_privacy.callbacks.gradient_pruning.callback import GradientPruning

    audit = LeakageAudit(attacks=["dlg"], attack_args=QUICK, victims=2, bootstrap=20, at_end=False, grid=0)
    fit(tmp_path, SmoothClassifier(), split_images(), [GradientPruning(share=0.5), audit])
    found = {r.attack: r for r in audit.last_results}
    knowing = found["initial/batch1/defended/survivors"]
    assert "initial/batch1/plain_update/dlg" in found and "initial/batch1/plain_update/survivors" not in found
    assert not any("insufficient_evidence" in note for note in knowing.notes)
    fit(tmp_path / "b", SmoothClassifier(), split_images(), [Kept(), audit])
    assert any("no attack on shared updates knows the defence `kept`" in n for n in audit.last_results[-1].notes)


def test_locked_runs_are_attacked_with_every_attack_on_secrets(tmp_path):
    from lightning_privacy.callbacks.key_lock.callback import KeyLock

    audit = LeakageAudit(attack_args=QUICK, victims=2, bootstrap=20, at_end=False, grid=0)
    fit(tmp_path, SmoothClassifier(norm=True), split_images(), [KeyLock(key_length=8), audit])
    names = {r.attack.removeprefix("initial/batch1/") for r in audit.last_results}
    assert {"defended/wrong_key", "defended/joint", "known_lock/known_lock", "known_secrets/dlg"} <= names
    assert {"ordinary_norm/inverting_gradients", "ordinary_norm/dlg"} <= names
    assert not {"defended/dlg", "defended/known_lock", "ordinary_norm/joint", "defended/first_layer"} & names


def audited():
    """Results of an audit on a rank, and how many updates it attacked itself."""
    made = split_images(4)
    made.prepare_data()
    made.setup("fit")
    seen = []

    class Counted(DeepLeakage):
        def reconstruct(self, target, update, seed):
            seen.append(seed)
            return super().reconstruct(target, update, seed)

    how = plan(attacks=lambda: {"dlg": Counted(evaluations=6, restarts=2)}, victims=3, batch_sizes=(1, 2))
    results, _ = audit_leakage(SmoothClassifier(), made, how, "initial")
    return [(r.attack, r.metrics) for r in results], len(seen)


@pytest.mark.dist
def test_two_ranks_share_the_updates_and_agree_with_one(rank_pool):
    alone, every = audited()
    (first, seen_first), (second, seen_second) = rank_pool.run(audited)
    assert first == second == alone
    assert every == 6 and seen_first == seen_second == 3
