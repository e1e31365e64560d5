"""What Lightning and W&B write of a run with a secret module, beside what they write of its twin in plain PyTorch."""

import copy

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import WandbLogger

from lightning_privacy.cli.main import main
from lightning_privacy.secrets import (
    KeyVault,
    find_secrets,
    join_optimizer_states,
    load_private_states,
    save_private_states,
    split_optimizer_states,
)


class KeepPrivate(L.Callback):
    """The smallest callback that a defence with secrets needs."""

    def __init__(self, vault):
        self.vault, self.loaded = vault, None

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        clean, private = split_optimizer_states(checkpoint, pl_module, trainer.optimizers)
        save_private_states(self.vault, "run", private)
        checkpoint["optimizer_states"] = clean["optimizer_states"]

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        self.loaded = (
            checkpoint  # there are no optimizers yet, and Lightning reads this dictionary again when there are
        )

    def on_fit_start(self, trainer, pl_module):
        if self.loaded is not None:
            private = load_private_states(self.vault, "run")
            self.loaded |= join_optimizer_states(self.loaded, private, pl_module, trainer.optimizers)


def _audit(path, vault, capsys):
    capsys.readouterr()
    code = main(["audit-secrets", str(path), "--vault", str(vault.path)])
    return code, capsys.readouterr()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_key_is_found_in_a_plain_checkpoint_and_in_none_of_ours(
    make_net, exposed, trainer, tmp_path, vault, kept, capsys, optimizer
):
    for name, net, callbacks in (
        ("plain", make_net(exposed, optimizer), []),
        ("ours", make_net(optimizer=optimizer), [KeepPrivate(vault)]),
    ):
        run = trainer(callbacks)
        run.fit(net)
        (tmp_path / name).mkdir()
        run.save_checkpoint(tmp_path / name / "full.ckpt")
        run.save_checkpoint(tmp_path / name / "weights.ckpt", weights_only=True)
        # the key alone at first: no file holds it as it is, and a plain full checkpoint still gives it away
        own = KeyVault.create(tmp_path / f"{name}.safetensors")
        own.put("lock/key", net.lock.key)
        code, out = _audit(tmp_path / name / "full.ckpt", own, capsys)
        assert code == (1 if name == "plain" else 0)
        assert ("`lock/key`, proportional rows" in out.out) == (name == "plain")
        assert ("optimizer_states.0.state" in out.out) == (name == "plain")
        own.put_all({n: v for n, v in kept(net).items() if n != "lock/key"})
        code, out = _audit(tmp_path / name, own, capsys)
        assert code == (1 if name == "plain" else 0), out.out
        assert ("weights.ckpt: state_dict.lock.scale.weight: `lock/scale.weight`" in out.out) == (name == "plain")
        assert find_secrets({"said": out.out + out.err}, own) == []


def test_a_checkpoint_saved_during_fit_with_weights_only_holds_none(make_net, trainer, tmp_path, kept):
    net = make_net()
    saving = ModelCheckpoint(tmp_path / "saved", save_weights_only=True, save_last=True)
    trainer([saving], enable_checkpointing=True).fit(net)
    assert list((tmp_path / "saved").glob("*.ckpt"))
    assert find_secrets(tmp_path / "saved", kept(net)) == []


def test_an_averaged_run_saves_neither_the_current_nor_the_average(make_net, trainer, tmp_path, vault, kept):
    net = make_net()
    averaging = WeightAveraging()
    run = trainer([averaging, KeepPrivate(vault)])
    seen = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "average.ckpt")
                seen.update({f"current/{n}": v for n, v in kept(pl_module).items()})
                seen.update({f"average/{n}": v for n, v in kept(averaging._average_model.module).items()})

    run.callbacks.append(Watch())
    run.fit(net)
    assert not torch.allclose(seen["current/lock/scale.weight"], seen["average/lock/scale.weight"])
    saved = torch.load(tmp_path / "average.ckpt", weights_only=True)
    assert "current_model_state" in saved and not [n for n in saved["current_model_state"] if "lock" in n]
    assert find_secrets(tmp_path / "average.ckpt", seen) == []


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(make_net, trainer, tmp_path, vault):
    whole = make_net(optimizer="adam")
    first = copy.deepcopy(whole)
    trainer(max_epochs=4).fit(whole)
    run = trainer([KeepPrivate(vault)], max_epochs=2)
    run.fit(first)
    run.save_checkpoint(tmp_path / "two.ckpt")
    again = make_net(optimizer="adam", seed=9)
    again.lock.fill(first.lock.secret_tensors())  # from the vault, in a new process
    trainer([KeepPrivate(vault)], max_epochs=4).fit(again, ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    for name, p in whole.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), p, rtol=0, atol=0)


def test_an_offline_wandb_folder_holds_none_and_a_leak_into_it_is_found(
    make_net, trainer, tmp_path, vault, kept, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    net = make_net()
    vault.put_all({f"first/{n}": v for n, v in kept(net).items()})
    logger = WandbLogger(save_dir=tmp_path / "clean", offline=True, log_model=False)
    (tmp_path / "clean").mkdir()
    saving = ModelCheckpoint(tmp_path / "clean" / "checkpoints")
    trainer([saving, KeepPrivate(vault)], logger=logger, enable_checkpointing=True, log_every_n_steps=1).fit(net)
    logger.log_hyperparams({"model": repr(net), "module": net.lock})
    vault.put_all(kept(net))
    logger.experiment.finish()
    files = {p.suffix for p in (tmp_path / "clean").rglob("*") if p.is_file()}
    assert {".wandb", ".ckpt"} <= files
    code, said = _audit(tmp_path / "clean", vault, capsys)
    assert code == 0, said.out

    (tmp_path / "leaky").mkdir()
    logger = WandbLogger(save_dir=tmp_path / "leaky", offline=True)
    logger.experiment.log({"padding": "abc " * 9000, "key": net.lock.key.tolist()})  # across a block of the file
    logger.experiment.finish()
    code, said = _audit(tmp_path / "leaky", vault, capsys)
    assert code == 1 and "lock/key`, numbers in a text" in said.out and ".wandb: record" in said.out


def test_the_verb_s_exit_codes_tell_found_from_not_searched(vault, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file.txt"
    file.write_text("open sesame, 64 times")
    assert _audit(file, vault, capsys)[0] == 2  # an empty vault
    vault.put_all({"word": "open sesame", "pin": "12"})
    code, said = _audit(file, vault, capsys)
    assert code == 1 and f"{file}: byte 0: `word`, text (UTF-8)" in said.out and "pin" in said.err
    assert "sesame" not in said.out + said.err
    assert _audit(tmp_path / "gone", vault, capsys)[0] == 2
    file.write_text("nothing")
    assert _audit(file, vault, capsys)[0] == 0
    for wrong in (["audit-secrets", str(file)], ["audit-secrets", "--vault", str(vault.path)]):
        with pytest.raises(SystemExit) as leaving:
            main(wrong)
        assert leaving.value.code == 2
    assert main(["audit-secrets", str(file), "--vault", str(vault.path), "--passphrase", "open sesame"]) == 2
    assert "sesame" not in capsys.readouterr().err
    vault.path.chmod(0o644)
    code, said = _audit(file, vault, capsys)
    assert code == 2 and "chmod 600" in said.err
