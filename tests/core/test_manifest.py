"""What a checkpoint says of its defences, who refuses it, and how it is loaded again."""

import copy
import enum
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_privacy.core import registry
from lightning_privacy.core.defence import Defence, Slot, SurgeryReport
from lightning_privacy.core.manifest import MANIFEST_VERSION, check_manifest, load_defended, write_manifest
from lightning_privacy.core.manifest_guard import ManifestGuard
from lightning_privacy.core.manifest_record import KEY, plain_init_args
from lightning_privacy.errors import ManifestError
from lightning_privacy.testing.dummy_defences import Gained, ObjectiveDummy, PostStepDummy, SurgeryDummy
from lightning_privacy.testing.fitting import compare, fit, quiet
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_modules import PlainRegressor, ProtocolRegressor, TinyDenoiser


@pytest.fixture
def registered(monkeypatch):
    """The surgery dummy as a registered defence."""
    targets = {**registry.DEFENCES._targets, "surgery_dummy": SurgeryDummy}
    monkeypatch.setattr(registry.DEFENCES, "_targets", targets)


def saved_by(folder, module, callbacks, **options):
    saver = ModelCheckpoint(folder, "saved", **options)
    fitted = fit(folder, module, plain_images(), [*callbacks, saver], enable_checkpointing=True)
    return Path(saver.best_model_path), fitted


class Holder(Defence):
    name: ClassVar[str] = "holder"
    slots = frozenset({Slot.OBJECTIVE})

    def __init__(self, value=None):
        super().__init__()
        self.value = value


class Colour(enum.Enum):
    RED = "red"


# --- what is written ----------------------------------------------------------------------------------------------


def test_manifest_says_what_was_done():
    checkpoint = {}
    report = SurgeryReport(("a",), 3, {"layers": ("a",), "sizes": {"a": 3}})
    write_manifest(checkpoint, [SurgeryDummy(["a"]), PostStepDummy(0.5)], {"surgery_dummy": report})
    manifest = checkpoint[KEY]
    assert manifest["version"] == MANIFEST_VERSION
    assert manifest["order"] == ["surgery_dummy", "post_step_dummy"]
    assert manifest["defences"]["surgery_dummy"] == {
        "init_args": {"names": ["a"]},
        "layout": {"layers": ("a",), "sizes": {"a": 3}},
        "slots": ["SURGERY"],
        "surgery": True,
        "key_fingerprint": None,
    }
    assert manifest["defences"]["post_step_dummy"]["init_args"] == {"bound": 0.5}
    assert not manifest["defences"]["post_step_dummy"]["surgery"]
    assert "lightning_privacy.testing" not in str(manifest)


def test_key_fingerprint_is_written():
    checkpoint, defence = {}, Holder()
    defence.key_fingerprint = "abc"
    write_manifest(checkpoint, [defence], {})
    assert checkpoint[KEY]["defences"]["holder"]["key_fingerprint"] == "abc"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (1, 1),
        (0.5, 0.5),
        (None, None),
        (True, True),
        ("text", "text"),
        ((1, [2, 3]), (1, [2, 3])),
        ({"a": (1,)}, {"a": (1,)}),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Path("a/b"), "a/b"),
        (Colour.RED, "RED"),
        (torch.bfloat16, "bfloat16"),
        (torch.device("cpu"), "cpu"),
        (torch.optim.Adam, "torch.optim.adam.Adam"),
        (compare, "lightning_privacy.testing.fitting.compare"),
    ],
)
def test_plain_values(value, plain):
    assert plain_init_args(Holder(value)) == {"value": plain}


@pytest.mark.parametrize("value", [lambda x: x, torch.zeros(1), object(), {1: 2}, "text".upper])
def test_values_without_a_plain_form_are_refused_where_a_model_is_rebuilt_from_them(value):
    class Surgeon(Holder):
        slots = frozenset({Slot.SURGERY})

    with pytest.raises(ManifestError, match="The argument `value` of `holder` cannot be written"):
        plain_init_args(Surgeon(value))
    assert plain_init_args(Holder(value))["value"].startswith("<not kept: ")


def test_function_of_a_script_is_named():
    def of_script():
        pass

    of_script.__module__, of_script.__qualname__ = "__main__", "of_script"
    assert plain_init_args(Holder(of_script)) == {"value": "__main__.of_script"}


def test_argument_that_is_not_kept_is_refused():
    class Forgets(Holder):
        def __init__(self, value=None, other=1):
            super().__init__(value)

    with pytest.raises(ManifestError, match="other"):
        plain_init_args(Forgets())


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_carry_the_manifest_and_load_safely(tmp_path, weights_only):
    path, _ = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy()], save_weights_only=weights_only)
    saved = torch.load(path, weights_only=True)
    assert saved[KEY]["defences"]["surgery_dummy"]["layout"]["layers"] == ["encoder", "decoder"]


# --- resuming -----------------------------------------------------------------------------------------------------


def manifest(**entries):
    return {KEY: {"version": 1, "order": list(entries), "defences": entries}}


SURGERY = {"init_args": {"names": None}, "layout": {"layers": ("a",)}, "surgery": True}


def test_newer_version_names_both():
    checkpoint = {KEY: {"version": 7, "package_version": "9.9", "defences": {}}}
    with pytest.raises(ManifestError, match=r"version 7 .*9\.9.*version 1 at most"):
        check_manifest(checkpoint, [])


def test_foreign_entry_is_refused():
    with pytest.raises(ManifestError, match="no defence manifest"):
        check_manifest({KEY: "hello"}, [])


def test_absent_surgeon_is_refused():
    with pytest.raises(ManifestError, match="`surgery_dummy`, which changed the model's layers.*load_defended"):
        check_manifest(manifest(surgery_dummy=SURGERY), [PostStepDummy()])


def test_surgeon_without_manifest_is_refused():
    with pytest.raises(ManifestError, match="has no defence manifest"):
        check_manifest({}, [SurgeryDummy()])
    with pytest.raises(ManifestError, match="was made without `surgery_dummy`"):
        check_manifest(manifest(post_step_dummy={"surgery": False}), [SurgeryDummy()])


def test_other_layout_is_refused():
    same = {"surgery_dummy": SurgeryReport(("a",), 0, {"layers": ("a",)})}
    check_manifest(manifest(surgery_dummy=SURGERY), [SurgeryDummy()], same)
    with pytest.raises(ManifestError, match="did other surgery"):
        check_manifest(
            manifest(surgery_dummy=SURGERY),
            [SurgeryDummy()],
            {"surgery_dummy": SurgeryReport(("b",), 0, {"layers": ("b",)})},
        )


def test_defences_without_surgery_may_come_and_go():
    check_manifest(manifest(post_step_dummy={"surgery": False}), [])
    check_manifest({}, [PostStepDummy()])


@pytest.mark.parametrize("callbacks", [[ManifestGuard()], [PostStepDummy(1e9)]])
def test_runs_without_the_surgeon_refuse_its_checkpoint_and_leave_the_module_clean(tmp_path, callbacks):
    path, _ = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy()])
    module = PlainRegressor()
    with pytest.raises(ManifestError, match="`surgery_dummy`"):
        fit(tmp_path, module, plain_images(), callbacks, ckpt_path=path)
    assert "on_load_checkpoint" not in module.__dict__


def test_surgeon_refuses_an_undefended_checkpoint(tmp_path):
    path, _ = saved_by(tmp_path, PlainRegressor(), [])
    with pytest.raises(ManifestError, match="has no defence manifest.*without `ckpt_path`"):
        fit(tmp_path, PlainRegressor(), plain_images(), [SurgeryDummy()], ckpt_path=path)


def test_surgeon_with_other_settings_refuses(tmp_path):
    path, _ = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy()])
    with pytest.raises(ManifestError, match="did other surgery"):
        fit(tmp_path, PlainRegressor(), plain_images(), [SurgeryDummy(["encoder"])], ckpt_path=path)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_check_also_holds_when_validating(tmp_path):
    path, fitted = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy()])
    with quiet():
        fitted.trainer.validate(PlainRegressor(), plain_images(), ckpt_path=str(path), verbose=False, weights_only=True)
        bare = L.Trainer(
            logger=False,
            enable_progress_bar=False,
            callbacks=[ManifestGuard()],
            accelerator="cpu",
            default_root_dir=tmp_path,
        )
        with pytest.raises(ManifestError):
            bare.validate(PlainRegressor(), plain_images(), ckpt_path=str(path), verbose=False, weights_only=True)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_guard_lets_the_users_own_hook_run_and_good_checkpoints_pass(tmp_path):
    calls = []

    class Hooked(PlainRegressor):
        def on_load_checkpoint(self, checkpoint):
            calls.append("class")

    path, _ = saved_by(tmp_path, PlainRegressor(), [PostStepDummy()])
    module = Hooked()
    fit(tmp_path, module, plain_images(), [ManifestGuard()], ckpt_path=path, max_epochs=2)
    module.on_load_checkpoint = lambda checkpoint: calls.append("instance")
    fit(tmp_path, module, plain_images(), [ManifestGuard()], ckpt_path=path, max_epochs=2)
    assert calls == ["class", "instance"]
    assert "on_load_checkpoint" in module.__dict__


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_guard_stands_back_where_a_defence_is(tmp_path):
    path, _ = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy()])
    fit(tmp_path, PlainRegressor(), plain_images(), [ManifestGuard(), SurgeryDummy()], ckpt_path=path, max_epochs=2)


# --- loading ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("weights_only", [False, True])
def test_load_defended_repeats_surgery_and_fills_every_weight(tmp_path, weights_only):
    path, fitted = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy(["enc*"])], save_weights_only=weights_only)
    module = load_defended(PlainRegressor(seed=1), path)
    assert isinstance(module.encoder, Gained)
    assert not isinstance(module.decoder, Gained)
    assert not compare(dict(module.state_dict()), fitted.weights)


@pytest.mark.usefixtures("registered")
def test_load_defended_builds_configure_model_first(tmp_path):
    class Late(PlainRegressor):
        def configure_model(self):
            if not hasattr(self, "late"):
                self.late = torch.nn.Linear(96, 96)

    path, fitted = saved_by(tmp_path, Late(), [SurgeryDummy()])
    assert not compare(dict(load_defended(Late(seed=1), path).state_dict()), fitted.weights)


def test_load_defended_of_training_time_defences_needs_no_registration(tmp_path):
    path, fitted = saved_by(tmp_path, ProtocolRegressor(), [ObjectiveDummy()])
    assert not compare(dict(load_defended(ProtocolRegressor(seed=1), path).state_dict()), fitted.weights)


def test_unknown_defence_names_it_and_how_to_register(tmp_path):
    path, _ = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy()])
    with pytest.raises(
        ManifestError, match=r"`surgery_dummy`, which is not registered.*register_defence\('surgery_dummy'"
    ):
        load_defended(PlainRegressor(), path)


def test_frozen_weights_may_be_absent_and_trainable_ones_may_not(tmp_path):
    path, fitted = saved_by(tmp_path, TinyDenoiser(), [PostStepDummy()])
    saved = torch.load(path, weights_only=True)
    whole = dict(saved["state_dict"])
    saved["state_dict"] = {k: v for k, v in whole.items() if k.startswith(("up", "down"))}
    torch.save(saved, tmp_path / "adapter.ckpt")
    module = load_defended(TinyDenoiser(seed=0), tmp_path / "adapter.ckpt")
    assert not compare(dict(module.state_dict()), fitted.weights)
    saved["state_dict"] = {k: v for k, v in whole.items() if not k.startswith("up")}
    torch.save(saved, tmp_path / "lacks.ckpt")
    with pytest.raises(ManifestError, match=r"lacks trainable weights.*up\.weight"):
        load_defended(TinyDenoiser(), tmp_path / "lacks.ckpt")


def test_running_statistics_of_trained_layers_are_needed(tmp_path):
    class Normed(PlainRegressor):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(8)

    path, _ = saved_by(tmp_path, Normed(), [PostStepDummy()])
    saved = torch.load(path, weights_only=True)
    del saved["state_dict"]["norm.running_mean"]
    torch.save(saved, path)
    with pytest.raises(ManifestError, match=r"norm\.running_mean"):
        load_defended(Normed(), path)


def test_weights_without_a_place_or_of_another_size_are_refused(tmp_path):
    path, _ = saved_by(tmp_path, ProtocolRegressor(), [PostStepDummy()])
    with pytest.raises(ManifestError, match=r"no place for: adapter\.weight"):
        load_defended(PlainRegressor(), path)
    with pytest.raises(ManifestError, match=r"another size: .*\(16, 96\) here"):
        load_defended(ProtocolRegressor(width=16), path)


@pytest.mark.usefixtures("registered")
def test_other_module_gives_another_layout(tmp_path):
    path, _ = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy()])
    with pytest.raises(ManifestError, match="gave another layout"):
        load_defended(ProtocolRegressor(), path)


@pytest.mark.usefixtures("registered")
def test_settings_of_another_version_are_refused(tmp_path):
    path, _ = saved_by(tmp_path, PlainRegressor(), [SurgeryDummy()])
    saved = torch.load(path, weights_only=True)
    saved[KEY]["defences"]["surgery_dummy"]["init_args"]["new"] = 1
    torch.save(saved, path)
    with pytest.raises(ManifestError, match="does not accept the checkpoint's settings"):
        load_defended(PlainRegressor(), path)


def test_plain_checkpoint_pickles_and_rubbish_are_refused(tmp_path):
    path, _ = saved_by(tmp_path, PlainRegressor(), [])
    with pytest.raises(ManifestError, match="no defence manifest.*load_from_checkpoint"):
        load_defended(PlainRegressor(), path)
    torch.save({"state_dict": {}, "evil": Colour.RED}, tmp_path / "pickled.ckpt")
    with pytest.raises(ManifestError, match="pickled objects"):
        load_defended(PlainRegressor(), tmp_path / "pickled.ckpt")
    (tmp_path / "rubbish.ckpt").write_bytes(b"rubbish")
    with pytest.raises(ManifestError, match="rubbish"):
        load_defended(PlainRegressor(), tmp_path / "rubbish.ckpt")
    with pytest.raises(ManifestError, match="There is no checkpoint"):
        load_defended(PlainRegressor(), tmp_path / "absent.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(ManifestError, match="no Lightning checkpoint"):
        load_defended(PlainRegressor(), tmp_path / "list.ckpt")


def test_vault_unlocks_and_without_it_nothing_is_asked(tmp_path, monkeypatch):
    asked = []

    class Locks(SurgeryDummy):
        name: ClassVar[str] = "locks"
        key_fingerprint = "abc"

        def unlock(self, module, vault, fingerprint):
            asked.append((vault, fingerprint))

    monkeypatch.setattr(registry.DEFENCES, "_targets", {**registry.DEFENCES._targets, "locks": Locks})
    path, _ = saved_by(tmp_path, PlainRegressor(), [Locks()])
    load_defended(PlainRegressor(), path)
    assert asked == []
    load_defended(PlainRegressor(), path, vault="my vault")
    assert asked == [("my vault", "abc")]


def test_loading_does_not_change_the_file(tmp_path):
    path, _ = saved_by(tmp_path, ProtocolRegressor(), [ObjectiveDummy()])
    before = path.read_bytes()
    load_defended(copy.deepcopy(ProtocolRegressor()), path)
    assert path.read_bytes() == before
