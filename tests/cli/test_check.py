"""The verb check: what a recipe would do, on any laptop."""

import pytest


def test_check_prints_order_slots_and_properties_and_writes_nothing(run, recipe, workspace):
    before = sorted(workspace.rglob("*"))
    code, out, err = run("check", "--config", recipe, "--defences.needs_clean={}")
    assert code == 0, err
    assert "Wrapped around Points" in out and "runs/toy" in out and "2 epochs" in out and "coin" in out
    assert out.index("louder") < out.index("needs_clean")  # objective before gradient
    assert "objective" in out and "gradient" in out and "per_sample_separable" in out.replace("\n", "")
    assert "No conflicts." in out
    assert sorted(workspace.rglob("*")) == before


def test_check_names_both_parties_and_the_remedy(run, recipe):
    code, _, err = run("check", "--config", recipe, "--defences.needs_clean={}", "--defences.dirty={}")
    assert code == 1
    assert "`needs_clean` requires PER_SAMPLE_SEPARABLE" in err and "`dirty` breaks" in err


@pytest.mark.parametrize(
    ("strategy", "word"),
    [
        (["--trainer.strategy", "fsdp", "--trainer.devices", "8", "--trainer.accelerator", "gpu"], "`fsdp`"),
        (["--trainer.strategy", "deepspeed_stage_2"], "`deepspeed_stage_2`"),
        (["--trainer.strategy", "lightning.pytorch.strategies.FSDPStrategy"], "`FSDPStrategy`"),
    ],
)
def test_a_clusters_strategy_is_judged_without_a_cluster(run, recipe, strategy, word):
    code, _, err = run("check", "--config", recipe, "--defences.needs_clean={}", *strategy)
    assert code == 1
    assert word in err and "UNSHARDED" in err and "`strategy: ddp`" in err


def test_a_clusters_recipe_checks_on_a_laptop(run, recipe):
    trainer = ["strategy=ddp", "devices=8", "num_nodes=4", "accelerator=gpu", "precision=bf16-mixed"]
    code, out, err = run("check", "--config", recipe, *(f"--trainer.{t}" for t in trainer))
    assert code == 0, err
    assert "ddp, devices 8, nodes 4, precision bf16-mixed" in out


def test_missing_weights_are_no_matter_for_check(run, recipe):
    assert run("check", "--config", recipe, "--model.missing", "true")[0] == 0


def test_an_undefended_unaudited_recipe_says_so(run, recipe):
    code, out, _ = run("check", "--config", recipe, "--defences.louder", "null", "--audits.coin", "null")
    assert code == 0
    assert "undefended run" in out and "nothing will attack the result" in out
