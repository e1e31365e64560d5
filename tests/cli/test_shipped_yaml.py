"""Every shipped YAML goes through the real command line: parsed, checked, and run where it is small enough."""

import subprocess
from itertools import chain

import pytest
import yaml

from lightning_privacy import resources
from lightning_privacy.cli.main import main
from lightning_privacy.testing.drawn_objects import write_drawn_objects

RECIPES = {path.stem: path for path in sorted(resources.recipes_folder().glob("*.yaml"))}
FRAGMENTS = {
    str(path.relative_to(resources.configs_folder())): path
    for path in sorted(resources.configs_folder().rglob("*.yaml"))
    if path.parent.name != "policies"  # of the gate, not of a run
}
SCRIPTS = sorted(resources.configs_folder().rglob("*.sbatch"))
BASE = RECIPES["smp_lora_faces"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(transformers|diffusers|peft|wandb|timm).*"),
]


def check(*configs, options=()):
    return main(["check", *(a for c in configs for a in ("--config", str(c))), *options])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_checks_without_data_weights_or_gpu(name, capsys, tmp_path):
    assert check(RECIPES[name]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert yaml.safe_load(RECIPES[name].read_text())["model"]["class_path"] in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FRAGMENTS)
def test_every_fragment_combines_with_a_recipe(name, capsys):
    assert check(BASE, FRAGMENTS[name]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", [*RECIPES, *FRAGMENTS])
def test_every_file_says_what_it_is_and_how_it_is_run(name):
    path = RECIPES.get(name) or FRAGMENTS[name]
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert head and len(head[0]) > 15
    if name in RECIPES:
        assert any("lightning-privacy fit --config" in line for line in head)
        assert head[0].startswith(f"# recipes/{name}.yaml: ")


def test_a_misspelt_key_in_a_recipe_would_be_found(tmp_path, capsys):
    raw = yaml.safe_load(BASE.read_text())
    raw["defences"]["smp_lora"]["strenght"] = 10
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(SystemExit) as leaving:
        check(tmp_path / "wrong.yaml")
    assert leaving.value.code == 2
    assert "`defences.smp_lora.strenght`" in capsys.readouterr().err


def settings(*configs, options=()):
    from lightning_privacy.cli.check import _ANY_LAPTOP
    from lightning_privacy.cli.privacy_cli import PrivacyCLI

    args = [a for c in configs for a in ("--config", str(c))]
    return PrivacyCLI([*args, *options], run=False, trainer_overrides=_ANY_LAPTOP)


def test_fragments_are_the_settings_that_they_name():
    from lightning_privacy.callbacks import SMPLoRA

    def defence(name):
        return settings(BASE, FRAGMENTS[f"defences/{name}.yaml"]).defences["smp_lora"].init_args

    assert defence("smp_lora_paper") == SMPLoRA.paper().init_args
    assert defence("mp_lora_paper") == SMPLoRA.paper(mode="mp").init_args
    assert defence("smp_lora_released") == SMPLoRA.released().init_args
    assert defence("smp_lora") == SMPLoRA().init_args
    assert defence("smp_lora_fast") == SMPLoRA.fast().init_args
    assert settings(RECIPES["smp_lora_sd15"]).defences["smp_lora"].init_args == SMPLoRA.paper().init_args
    # a fragment of ours must also undo a recipe's paper settings
    undone = settings(RECIPES["smp_lora_sd15"], FRAGMENTS["defences/smp_lora.yaml"]).defences["smp_lora"].init_args
    assert undone == SMPLoRA().init_args
    assert settings(BASE, FRAGMENTS["defences/none.yaml"]).defences == {}
    assert settings(BASE, FRAGMENTS["defences/smp_lora_paper.yaml"]).model.rank == 64


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_batch_scripts_are_valid_shell_and_their_options_exist(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    text = path.read_text()
    assert "#SBATCH --requeue" in text
    if "srun lightning-privacy audit" in text:  # `--shadows-only` is tested with the verb
        assert '--shadows-only "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"' in text
        return
    assert "srun lightning-privacy fit" in text and "--ckpt_path last" in text
    run = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    keys = [w.removeprefix("--") for w in run.split() if w.startswith("--") and "." in w]
    assert keys
    settings(BASE, options=[word for key in keys for word in (f"--{key}", "1")])  # refuses what does not exist


ON_FACES = [
    *("--audits.inversion.attack_args", "{trained_decoder: {max_steps: 2, width: 4, blocks: 1}, "
      "optimisation_from_decoder: {steps: 1, most_steps: 1, tuning: 2, stay: [0.1], variation: [0.0]}, "
      "surrogate_from_decoder: {steps: 1, most_steps: 1, tuning: 2, stay: [0.1], variation: [0.0]}}"),
    *("--audits.inversion.victims", "8", "--audits.inversion.at_end", "false"),
    *("--trainer.logger", "false", "--defences.sparse_coding.iters", "2"),
]  # fmt: skip
FACES_INSTEAD = [
    *("--config", str(FRAGMENTS["trainer/cpu.yaml"]), "--config", str(FRAGMENTS["data/faces.yaml"])),
    *("--data.inner.size", "32", "--data.inner.people", "1-40", "--model.classes", "40"),
    *("--model.init_args.channels", "3", "--model.init_args.image_size", "32"),
    *("--data.init_args.fractions", "{member: 0.4, aux_nonmember: 0.0, attack_nonmember: 0.3, val: 0.1, holdout: 0.2}"),
]
ON_GRADIENTS = ["--trainer.logger", "false", "--audits.leakage.at_start", "false", "--audits.leakage.at_end", "false"]
UNAUDITED = ["--audits.membership", "null"]  # another rehearsal has it
LOCKED_FACES = [
    *("--data.init_args.inner.init_args.inner", "{class_path: Faces, init_args: {people: 21-26, size: 16, batch_size: 8}}"),
    *("--data.init_args.inner.init_args.editor", "{class_path: PixelShuffleEditor, init_args: "
      "{key: 'vault:private/lock.safetensors#key', create: true}}"),
    *("--data.init_args.inner.init_args.crop", "16", "--config", str(FRAGMENTS["trainer/cpu.yaml"])),
    *("--model.init_args.network", "small_cnn", "--model.init_args.network_args", "{}", "--trainer.logger", "false"),
    *("--model.init_args.pretrained", "null", "--model.init_args.image_size", "16", "--trainer.precision", "32-true"),
]  # fmt: skip
AS_ANOTHER = dict.fromkeys(("sca_celeba", "sca_mnist", "sca_fashion_mnist", "sca_medmnist"), "sca_cifar10")
ON_TOYS = {
    "audit_faces_classifier": ["--audits.membership.shadows", "4", "--trainer.logger", "false"],
    "lira_cifar10_resnet18": [
        *("--config", str(FRAGMENTS["trainer/cpu.yaml"]), "--config", str(FRAGMENTS["data/faces.yaml"])),
        *("--data.inner.size", "8", "--data.inner.people", "1-40", "--model.classes", "40"),
        *("--audits.membership.shadows", "0", "--model.init_args.network_args", "{width: 8}"),
    ],
    "fedkl_faces": ON_GRADIENTS,
    "modellock_faces": [
        *("--data.init_args.inner.init_args.inner.init_args.people", "21-22", "--trainer.logger", "false"),
        *("--data.init_args.inner.init_args.editor.init_args.steps", "1", "--audits.lock.at_end", "false"),
    ],
    "modellock_faces_order": [
        *("--data.init_args.inner.init_args.inner.init_args.people", "21-22", "--trainer.logger", "false"),
        *("--audits.lock.at_end", "false"),
    ],
    "modellock_pets_vit": LOCKED_FACES,
    "modellock_resnet50": LOCKED_FACES,
    "modellock_swinv2": LOCKED_FACES,
    "modellock_coco": [
        *("--data.init_args.inner.init_args.inner.init_args.pictures", "pictures"),
        *("--data.init_args.inner.init_args.inner.init_args.annotations", "instances.json"),
        *("--data.init_args.inner.init_args.inner.init_args.size", "48"),
        *("--data.init_args.inner.init_args.inner.init_args.num_workers", "0"),
        *(
            "--data.init_args.inner.init_args.editor",
            "{class_path: PixelShuffleEditor, init_args: {key: 'vault:private/lock.safetensors#key', create: true}}",
        ),
        *(
            "--data.init_args.fractions",
            "{member: 0.4, aux_nonmember: 0.0, attack_nonmember: 0.2, val: 0.2, holdout: 0.2}",
        ),
        *("--model.init_args.network", "small_maskrcnn", "--model.init_args.pretrained", "null"),
        *("--model.init_args.classes", "2", "--model.init_args.image_size", "48", "--trainer.logger", "false"),
        *("--config", str(FRAGMENTS["trainer/cpu.yaml"]), "--trainer.precision", "32-true"),
    ],
    "fedkl_cifar10_resnet20": [*FACES_INSTEAD, *ON_GRADIENTS, "--model.init_args.network_args", "{width: 4}"],
    "fedkl_cifar100_resnet32": [*FACES_INSTEAD, *ON_GRADIENTS, "--model.init_args.network_args", "{width: 4}"],
    "fedkl_imagenet_resnet18": [*FACES_INSTEAD, *ON_GRADIENTS],
    "sca_faces_split": ON_FACES,
    "sca_faces_end_to_end": ON_FACES,
    "sca_faces_plug_and_play": [
        *("--audits.class_inversion.generator_steps", "2", "--audits.class_inversion.evaluation_steps", "2"),
        *("--audits.class_inversion.attack_args", "{candidates: 4, optimised: 1, kept: 1, steps: 1}"),
        *("--audits.class_inversion.most", "2", "--audits.class_inversion.at_end", "false"),
        *("--trainer.logger", "false", "--defences.sparse_coding.iters", "2"),
    ],
    "sca_cifar10": [*ON_FACES, *FACES_INSTEAD],
    # recipes made small enough for a test: the tiny model, few pictures, one process on the CPU
    "smp_lora_faces": ["--data.inner.people", "21-30", "--model.pictures_every_n_epochs", "0"],
    "smp_lora_sd15": [
        *("--config", str(FRAGMENTS["trainer/cpu.yaml"]), "--config", str(FRAGMENTS["data/faces.yaml"])),
        *("--model.pretrained", "tiny", "--model.text_encoder_rank", "4", "--data.inner.people", "21-30"),
    ],
    "pretrain_tiny_autoencoder": ["--data.samples_per_epoch", "32"],
    "pretrain_tiny_sd": [
        *("--data.samples_per_epoch", "32", "--model.bank", "64"),
        *("--model.autoencoder", str(resources.tiny_stable_diffusion() / "vae")),
    ],
}
NEEDS_MORE_THAN_A_TEST = {
    "audit/checkpoint.yaml": "somebody's checkpoint; what it describes is built below",
    "trainer/ddp.yaml": "GPUs",
    "trainer/single_gpu.yaml": "a GPU",
    "trainer/ddp_cpu.yaml": "starts this program again as its second rank",
    "logger/wandb_online.yaml": "an account",
    "data/image_caption_folder.yaml": "the user's pictures",
    "data/digits.yaml": "a classifier; see below",
    "data/mnist5k.yaml": "a classifier; see below",
    "data/cifar10.yaml": "a classifier, and a download",
    "data/image_folder.yaml": "a classifier, and the user's pictures",
    "defences/adversarial_inversion.yaml": "a layer of a classifier; see below",
    "defences/bido.yaml": "a layer of a classifier; see below",
    "defences/clip_and_noise.yaml": "a classifier; see below",
    "defences/gradient_bottleneck.yaml": "a classifier; see below",
    "defences/gradient_noise.yaml": "a classifier; see below",
    "defences/gradient_pruning.yaml": "a classifier; see below",
    "defences/key_lock.yaml": "a normalisation layer; see below",
    "defences/key_lock_paper.yaml": "a normalisation layer; see below",
    "defences/model_lock.yaml": "edited pictures; see the recipes",
    "defences/model_lock_paper.yaml": "edited pictures; see below",
    "defences/negative_label_smoothing.yaml": "a classifier; see below",
    "defences/noise_tap.yaml": "a layer of a split network; see below",
    "defences/nopeek.yaml": "a layer of a classifier; see below",
    "defences/private_affine.yaml": "a normalisation layer; see below",
    "defences/sparse_coding.yaml": "the convolutions of a classifier; see below",
    "defences/sparse_coding_learned.yaml": "the convolutions of a classifier; see below",
    "defences/sparse_coding_released.yaml": "the convolutions of a classifier; see below",
    "defences/sparse_coding_standard.yaml": "the convolutions of a classifier; see below",
    "defences/variational_bottleneck.yaml": "a layer of a split network; see below",
    "model/classifier.yaml": "pictures of 8 pixels, one channel; see below",
    "model/classifier_cifar_resnet18.yaml": "ten classes of three channels",
    "model/classifier_pretrained.yaml": "a download",
    "model/sd15_lora.yaml": "4 GB of weights",
}


def rehearse(*configs, options=()):
    configs = [*configs, FRAGMENTS["trainer/debug.yaml"]]
    return main(["fit", *(a for c in configs for a in ("--config", str(c))), *options])


@pytest.mark.parametrize("name", ON_TOYS)
def test_every_recipe_rehearses_on_toys(name, capsys, tmp_path):
    if "coco" in name:
        pytest.importorskip("pycocotools", reason="needs the extra `detection`")
        write_drawn_objects(tmp_path, n=20, size=48)
    assert rehearse(RECIPES[name], options=ON_TOYS[name]) == 0, capsys.readouterr().err


# What sets different things is rehearsed in one run.
TOGETHER = {
    "trainer/cpu.yaml": ["logger/csv.yaml", "data/faces.yaml", "model/low_memory.yaml"],
    "trainer/demo.yaml": ["logger/wandb_offline.yaml", "defences/smp_lora.yaml", "model/tiny_sd.yaml"],
    "trainer/regularised.yaml": ["defences/none.yaml"],
}
ALONE = [f for f in FRAGMENTS if f not in {*NEEDS_MORE_THAN_A_TEST, *chain(*TOGETHER.values()), "trainer/debug.yaml"}]


@pytest.mark.parametrize("name", ALONE)
def test_every_fragment_rehearses_on_toys(name, capsys):
    group = [FRAGMENTS[each] for each in (name, *TOGETHER.get(name, []))]
    assert rehearse(BASE, *group, options=ON_TOYS["smp_lora_faces"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["data/digits.yaml", pytest.param("data/mnist5k.yaml", marks=pytest.mark.slow)])
def test_classifiers_rehearse_on_digits(name, capsys):
    size = ["--model.init_args.image_size", "28"] if "mnist" in name else []
    base = RECIPES["audit_faces_classifier"]
    options = ["--audits.membership.shadows", "0", *size]
    assert rehearse(base, FRAGMENTS["model/classifier.yaml"], FRAGMENTS[name], options=options) == 0, (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "name",
    [
        "adversarial_inversion",
        "bido",
        "clip_and_noise",
        "gradient_bottleneck",
        "gradient_noise",
        "gradient_pruning",
        "negative_label_smoothing",
        "nopeek",
    ],
)
def test_other_defences_rehearse_on_a_classifier(name, capsys):
    base, fragment = RECIPES["audit_faces_classifier"], FRAGMENTS[f"defences/{name}.yaml"]
    options = [*UNAUDITED, "--trainer.logger", "false"]
    assert rehearse(base, fragment, options=options) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["noise_tap", "variational_bottleneck"])
def test_layers_against_inversion_rehearse_on_a_split_network(name, capsys):
    base, fragment = RECIPES["audit_faces_classifier"], FRAGMENTS[f"defences/{name}.yaml"]
    options = [*UNAUDITED, "--trainer.logger", "false", "--model.init_args.network", "split_cnn"]
    assert rehearse(base, fragment, options=options) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["key_lock", "key_lock_paper", "private_affine"])
def test_private_norms_rehearse_on_a_classifier_that_has_them(name, capsys):
    base, fragment = RECIPES["fedkl_faces"], FRAGMENTS[f"defences/{name}.yaml"]
    alone = ["--defences.key_lock", "null"] if name == "private_affine" else []
    options = [*ON_GRADIENTS, "--audits.leakage", "null", *alone]
    assert rehearse(base, fragment, options=options) == 0, capsys.readouterr().err


def test_a_lock_as_in_the_paper_rehearses_on_edited_faces(capsys):
    base, fragment = RECIPES["modellock_resnet50"], FRAGMENTS["defences/model_lock_paper.yaml"]
    assert rehearse(base, fragment, options=LOCKED_FACES) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["_learned", "_released"])
def test_sparse_coding_rehearses_on_a_classifier(name, capsys):
    base, fragment = RECIPES["audit_faces_classifier"], FRAGMENTS[f"defences/sparse_coding{name}.yaml"]
    few = ["--defences.sparse_coding.iters", "2", "--trainer.logger", "false", *UNAUDITED]
    assert rehearse(base, fragment, options=few) == 0, capsys.readouterr().err


def test_what_is_not_rehearsed_exists():
    assert set(NEEDS_MORE_THAN_A_TEST) <= set(FRAGMENTS) and set(ON_TOYS) | set(AS_ANOTHER) == set(RECIPES)


@pytest.mark.parametrize("name", AS_ANOTHER)
def test_recipes_that_are_not_rehearsed_differ_from_one_that_is_in_data_and_numbers_alone(name):
    def without(recipe):
        raw = yaml.safe_load(RECIPES[recipe].read_text())
        return {
            "keys": sorted(raw),
            "model": sorted(raw["model"]["init_args"]),
            "network": raw["model"]["init_args"]["network"],
            "defences": sorted(raw["defences"]["sparse_coding"]),
            "audits": sorted(set(raw["audits"]["inversion"]) - {"attack_args"}),
        }

    assert without(name) == without(AS_ANOTHER[name])


def test_the_audit_of_a_checkpoint_describes_something_that_can_be_built(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "--config", str(FRAGMENTS["audit/checkpoint.yaml"])]) == 1
    assert "There is no checkpoint theirs.pt" in capsys.readouterr().err
