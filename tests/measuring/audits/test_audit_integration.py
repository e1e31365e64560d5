import pytest
import torch

from lightning_privacy.callbacks.audits.membership import MembershipAudit
from lightning_privacy.callbacks.audits.signals import compute_signals
from lightning_privacy.callbacks.audits.split_access import role_indices
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import split_images
from lightning_privacy.testing.tiny_modules import TinyDenoiser
from lightning_privacy.testing.toy_data import ToyImages


def test_a_fit_with_the_real_split_is_audited(tmp_path):
    split = split_images()
    audit = MembershipAudit(["averaged_loss", "calibrated_loss", "trained_calibrated"], draws=1, bootstrap=100)
    fit(tmp_path, TinyDenoiser(), split, [audit], max_epochs=2)
    results = RunFolder(tmp_path).results()
    assert [r.attack for r in results] == ["averaged_loss", "calibrated_loss", "trained_calibrated"]
    assert {r.split_hash for r in results} == {split.split_hash}
    assert dict(results[0].n) == {"member": 16, "holdout": len(split.roles["holdout"])}
    assert results[0].extra["timesteps"][0] in range(2, 9)  # of a hundred steps
    assert results[0].epoch == 2


def test_roles_of_the_real_split_are_read_in_order():
    split = MembershipSplit(ToyImages(n=40, size=8))
    split.prepare_data()
    split.setup("fit")
    signals = compute_signals(TinyDenoiser(), split, ["eval_member", "holdout"], {"loss"}, batch_size=3)
    for role, found in signals.items():
        assert found.record_ids == tuple(split.record_ids[i] for i in role_indices(split, role))
    assert not set(role_indices(split, "eval_member")) & set(split.roles["aux_member"])
    assert set(role_indices(split, "eval_member")) | set(split.roles["aux_member"]) == set(split.roles["member"])


# Lightning's OptimizerCallable is a `typing.Callable`, which beartype finds old-fashioned.
@pytest.mark.filterwarnings("ignore:.*deprecated by PEP 585")
def test_stable_diffusion_with_adapters(tmp_path):
    from lightning_privacy.modules.latent_diffusion import StableDiffusionLoRA
    from lightning_privacy.testing.tiny_diffusion import random_stable_diffusion

    split = MembershipSplit(ToyImages(n=40, size=16, batch_size=8))
    split.prepare_data()
    split.setup("fit")
    module = StableDiffusionLoRA(str(random_stable_diffusion(tmp_path / "sd", factor=2)), rank=2)
    module.configure_model()
    every = {"loss", "reference_loss", "error_map", "reference_error_map"}
    fresh = compute_signals(module, split, ["holdout"], every)["holdout"]
    assert fresh.error_map.shape == (len(split.roles["holdout"]), 20, 256)
    assert fresh.timesteps.unique().tolist() == list(range(50, 951, 100))
    assert torch.equal(fresh.loss, fresh.reference_loss)  # the adapters start at zero
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    tuned = compute_signals(module, split, ["holdout"], every)["holdout"]
    assert torch.equal(tuned.reference_loss, fresh.loss)
    assert float((tuned.loss - fresh.loss).abs().min()) > 0
