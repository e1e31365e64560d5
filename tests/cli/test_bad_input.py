"""Bad input through the shipped recipe and the real classes: one clear error, exit code 1, nothing half-written."""

import json

import pytest
import torch
from PIL import Image

from lightning_privacy.cli.main import main
from lightning_privacy.resources import recipe

QUIET = [
    "--trainer.logger", "false", "--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0",
    "--trainer.limit_val_batches", "0", "--model.rank", "2", "--model.pictures_every_n_epochs", "0",
    "--audits.membership", "null", "--audits.quality", "null", "--run_name", "run",
]  # fmt: skip
FACES = ["--data.inner.people", "21-30", "--trainer.limit_train_batches", "2"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a verb in an empty folder; return the exit code and the errors."""
    monkeypatch.chdir(tmp_path)

    def _command(*args):
        capsys.readouterr()
        code = main(list(args))
        _, *errors = ("\n" + capsys.readouterr().err).split("\nerror: ")
        return code, errors

    return _command


@pytest.fixture
def fit(command):
    """Fit the shipped recipe, small, with further options."""
    return lambda *args: command("fit", "--config", str(recipe("smp_lora_faces")), *QUIET, *args)


@pytest.fixture
def pictures(tmp_path):
    """A folder of twelve captioned pictures, and the options that train on it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (80, 64), (20 * i, 255 - 20 * i, 90)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"a plain picture {i}")
    options = ["--data.inner", "ImageCaptionFolder", "--data.inner.root", str(folder)]
    return folder, [
        *options,
        "--data.inner.size",
        "64",
        "--data.inner.num_workers",
        "0",
        "--data.inner.batch_size",
        "2",
    ]


def nothing_written(tmp_path):
    return not [p for p in (tmp_path / "runs").rglob("*") if p.is_file()] if (tmp_path / "runs").exists() else True


def refused(answer, *words):
    code, errors = answer
    assert code == 1 and len(errors) == 1
    assert all(word in errors[0] for word in words), errors[0]
    return True


def test_the_pictures_train_when_nothing_is_wrong(fit, pictures):
    assert fit(*pictures[1]) == (0, [])


def test_missing_weights(fit, tmp_path):
    assert refused(fit(*FACES, "--model.pretrained", "no/weights/here"), "no/weights/here")
    assert nothing_written(tmp_path)


def test_an_empty_caption_file(fit, pictures, tmp_path):
    folder, options = pictures
    (folder / "03.txt").write_text(" \n")
    assert refused(fit(*options), "03.txt", "empty")
    assert nothing_written(tmp_path)


def test_a_corrupt_jpeg(fit, pictures, tmp_path):
    folder, options = pictures
    Image.new("RGB", (80, 64)).save(folder / "99.jpg")
    (folder / "99.jpg").write_bytes((folder / "99.jpg").read_bytes()[:200])
    (folder / "99.txt").write_text("half a picture")
    assert refused(fit(*options), "99.jpg")
    assert nothing_written(tmp_path)


def test_one_picture_as_member_and_nonmember(fit, pictures, tmp_path):
    folder, options = pictures
    (folder / "11.png").write_bytes((folder / "00.png").read_bytes())
    roles = {"member": [0, 1], "aux_member": [1], "aux_nonmember": [2], "attack_nonmember": [3], "holdout": [11]}
    (tmp_path / "roles.yaml").write_text(json.dumps({"data": {"init_args": {"roles": roles}}}))
    assert refused(fit(*options, "--config", "roles.yaml"), "0 and 11 hold the same picture", "`member`", "`holdout`")
    assert nothing_written(tmp_path)


def test_a_proxy_built_for_another_latent_shape(fit, tmp_path):
    error_map = [*FACES, "--defences.smp_lora.proxy", "error_map"]
    assert fit(*error_map) == (0, [])
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*.ckpt")}
    larger = ("--trainer.max_epochs", "2", "--data.inner.size", "96", "--ckpt_path", "last")
    assert refused(fit(*error_map, *larger), "256", "576", "pooled_map")
    assert {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*.ckpt")} == before


def test_a_class_that_cannot_be_imported(tmp_path, capsys):
    for path in ("nowhere.Gone", "lightning_privacy.modules.Gone"):
        (tmp_path / "gone.yaml").write_text(f"model: {{class_path: {path}}}\n")
        with pytest.raises(SystemExit) as leaving:
            main(["check", "--config", str(tmp_path / "gone.yaml")])
        said = capsys.readouterr().err
        assert leaving.value.code == 2 and said.count("error:") == 1
        assert f"`model`: the class `{path}` cannot be imported" in said


def test_a_loss_that_is_not_a_number(fit, tmp_path):
    options = [
        *FACES,
        "--trainer.max_epochs",
        "9",
        "--model.optimizer.lr",
        "1e15",
        "--data.inner.batch_size",
        "64",  # one step an epoch: the first epoch's checkpoint is good
    ]
    assert refused(fit(*options), "step", "checkpoints/last.ckpt")
    last = torch.load(tmp_path / "runs/run/checkpoints/last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


@pytest.fixture
def newer(fit, tmp_path):
    """A finished run whose checkpoint says that a later version of the manifest wrote it."""
    assert fit(*FACES) == (0, [])
    path = tmp_path / "runs/run/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lightning_privacy"]["version"] += 1
    torch.save(checkpoint, path)


@pytest.mark.parametrize("verb", ["resume", "audit"])
def test_a_checkpoint_of_a_newer_manifest(fit, command, newer, verb):
    if verb == "resume":
        answer = fit(*FACES, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    else:
        answer = command("audit", "runs/run", "--audits.membership={}")
    assert refused(answer, "manifest has version 2", "pip install -U lightning-privacy")


def test_an_audit_with_another_split(fit, command, tmp_path):
    assert fit(*FACES) == (0, [])
    answer = command("audit", "runs/run", "--audits.membership={}", "--data.split_seed", "5")
    assert refused(answer, "split")
    assert not (tmp_path / "runs/run/results.jsonl").exists()


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2"])
def test_a_sharded_strategy(fit, strategy, tmp_path):
    answer = fit(*FACES, "--trainer.strategy", strategy)
    assert refused(answer, strategy, "ddp")
    assert nothing_written(tmp_path)
