"""The command itself: verbs, listings, exit codes, what is imported when."""

import subprocess
import sys

import pytest
import yaml

from lightning_privacy import resources


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    for folder, name in (("recipes", "toy.yaml"), ("configs", "trainer/ddp.yaml"), ("configs", "slurm/node.sbatch")):
        path = tmp_path / "shipped" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n# the {name}\ntrainer: {{}}\n")
    monkeypatch.setattr(resources, "recipes_folder", lambda: tmp_path / "shipped/recipes")
    monkeypatch.setattr(resources, "configs_folder", lambda: tmp_path / "shipped/configs")


def test_help_lists_the_verbs(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {verb} " in out for verb in ("fit", "check", "audit", "compare", "report", "recipes", "defences"))
    assert run()[0] == 2


def test_an_unknown_verb_is_a_usage_error(run):
    code, _, err = run("train")
    assert code == 2 and "no verb `train`" in err


def test_recipes_are_listed_shown_and_copied(run, shipped, tmp_path):
    code, out, _ = run("recipes", "ls")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["toy", "the", "toy.yaml"],
        ["slurm/node.sbatch", "the", "slurm/node.sbatch"],
        ["trainer/ddp", "the", "trainer/ddp.yaml"],
    ]
    assert "# the trainer/ddp.yaml" in run("recipes", "show", "trainer/ddp")[1]
    assert run("recipes", "cp", "toy", str(tmp_path))[0] == 0
    assert yaml.safe_load((tmp_path / "toy.yaml").read_text()) == {"trainer": {}}


def test_copying_never_overwrites(run, shipped, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    code, _, err = run("recipes", "cp", "toy", str(tmp_path / "mine.yaml"))
    assert code == 1 and "exists" in err and (tmp_path / "mine.yaml").read_text() == "mine"
    assert run("recipes", "cp", "toy", str(tmp_path / "no" / "where.yaml"))[0] == 1
    code, _, err = run("recipes", "show", "no_such")
    assert code == 1 and "no recipe `no_such`" in err
    assert run("recipes", "burn")[0] == 2


def test_defences_are_listed_and_their_cards_shown(run, workspace, fakes, tmp_path, monkeypatch):
    from pathlib import Path

    card = Path(fakes.__file__).with_name("README.md")
    monkeypatch.setattr(resources, "method_card", lambda name: f"# {name}\n\nMakes a **{name}** loss.\n\n## Use it\n")
    code, out, _ = run("defences", "ls")
    assert code == 0 and "louder" in out and "Makes a **louder** loss." in out
    out = run("defences", "show", "louder")[1]
    assert "Makes a louder loss." in out and "Use it" in out  # rendered, not raw
    assert not card.exists()


def test_a_defence_without_a_card_is_named(run, workspace):
    code, _, err = run("defences", "show", "louder")
    assert code == 1 and "`louder`" in err
    code, _, err = run("defences", "show", "nothing")
    assert code == 1 and "no defence `nothing`" in err


def test_a_missing_tiny_model_is_named_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path)
    with pytest.raises(Exception, match="pretrain_tiny_sd"):
        resources.tiny_stable_diffusion()
    (tmp_path / "assets/tiny_sd/unet").mkdir(parents=True)
    (tmp_path / "assets/tiny_sd/unet/diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert resources.tiny_stable_diffusion() == tmp_path / "assets/tiny_sd"


def test_resources_prefer_the_installed_package(monkeypatch, tmp_path):
    package = tmp_path / "site" / "lightning_privacy"
    (package.parent / "recipes").mkdir(parents=True)
    package.mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.recipes_folder() == package.parent / "recipes"  # editable install: the source tree
    (package / "_recipes").mkdir()
    assert resources.recipes_folder() == package / "_recipes"  # wheel
    with pytest.raises(Exception, match="`configs` is neither in"):
        resources.configs_folder()


def test_listing_imports_no_torch_and_the_program_runs_as_installed():
    code = (
        "import sys; from lightning_privacy.cli.main import main; code = main(['recipes', 'ls']); "
        "print('torch' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False 0"


def test_errors_leave_by_the_exit_code_of_a_real_process(tmp_path):
    program = [sys.executable, "-c", "import sys; from lightning_privacy.cli.main import main; sys.exit(main())"]
    done = subprocess.run([*program, "audit", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: nowhere is no folder")
    assert "Traceback" not in done.stderr
