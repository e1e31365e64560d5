import copy
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.errors import InputError, ManifestError
from lightning_privacy.modules.latent_diffusion import StableDiffusionLoRA
from lightning_privacy.modules.stable_diffusion.lora import is_lora_key
from lightning_privacy.testing.tiny_diffusion import random_stable_diffusion

pytestmark = [
    # A CPU trainer on purpose, and loaders without workers on purpose.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log\\(\\)` but the `self.trainer`"),
    # Lightning's own call into torch.
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]


class Pictures(Dataset[Any]):
    def __init__(self, count: int, first: int = 0) -> None:
        generator = torch.Generator().manual_seed(first)
        self.images = torch.rand(count, 3, 16, 16, generator=generator)
        self.first = first

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return {"image": self.images[i], "caption": f"a photo of person {i}, red, blue", "record": self.first + i}


class Data(L.LightningDataModule):
    """Order depends on the epoch alone, as in the package's own datamodules."""

    def train_dataloader(self) -> Any:
        epoch = self.trainer.current_epoch
        order = torch.randperm(6, generator=torch.Generator().manual_seed(epoch)).tolist()
        return DataLoader(Pictures(6), batch_size=2, sampler=order)

    def val_dataloader(self) -> Any:
        return DataLoader(Pictures(3, first=100), batch_size=2)


def trainer(folder, **options: Any) -> L.Trainer:
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "default_root_dir": folder,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "reload_dataloaders_every_n_epochs": 1,
            **options,
        }
    )


@pytest.fixture
def make(tiny_folder):
    def module(**options: Any) -> StableDiffusionLoRA:
        return StableDiffusionLoRA(
            **{
                "pretrained": str(tiny_folder),
                "rank": 2,
                "val_timesteps": 2,
                "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2),
                **options,
            }
        )

    return module


def adapters(module: StableDiffusionLoRA) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters() if is_lora_key(n)}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_resume_equals_an_uninterrupted_run_bit_for_bit(make, tmp_path):
    options = {
        "text_encoder_rank": 2, "noise_offset": 0.05, "caption_dropout": 0.3, "caption_shuffle": True,
        "dropout": 0.0, "lr_scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    }  # fmt: skip
    straight = make(**options)
    whole = trainer(tmp_path, max_epochs=2)
    whole.fit(straight, Data())

    first = make(**options)
    begun = trainer(tmp_path, max_epochs=1)
    begun.fit(first, Data())
    begun.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(12345)  # nothing may depend on the global random state
    second = make(**options)
    resumed = trainer(tmp_path, max_epochs=2)
    resumed.fit(second, Data(), ckpt_path=tmp_path / "half.ckpt")

    assert resumed.global_step == whole.global_step == 6
    assert same(adapters(straight), adapters(second)) and not same(adapters(first), adapters(second))
    assert same(whole.optimizers[0].state_dict(), resumed.optimizers[0].state_dict())
    assert [g["lr"] for g in whole.optimizers[0].param_groups] == [1e-2 / 8, 1e-5 / 8]


def test_frozen_latents_are_cached_and_the_base_does_not_move(make, tmp_path):
    module = make()
    module.configure_model()
    before = {n: p.clone() for n, p in module.named_parameters() if not is_lora_key(n)}
    start = adapters(module)
    trainer(tmp_path, max_epochs=2).fit(module, Data())
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters() if n in before)
    assert not same(start, adapters(module))
    # 6 training and 3 validation records; each validation record is looked up once per timestep.
    assert (module.encoder.latents.misses, module.encoder.latents.hits) == (9, 6 + 3 * 2 * 2 - 3)
    assert module.encoder.states.misses == 6  # captions repeat in validation


def test_a_checkpoint_holds_adapters_only_and_loads_safely(make, tmp_path):
    module, run = make(alpha=1), trainer(tmp_path)
    run.fit(module, Data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == set(adapters(module))
    assert checkpoint["lora"]["rank"] == 2 and "optimizer" not in checkpoint["hyper_parameters"]

    again = StableDiffusionLoRA.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert same(adapters(again), adapters(module)) and again.alpha == 1

    with pytest.raises(ManifestError, match=r"alpha is 1\.0 in the checkpoint and 2\.0 here"):
        trainer(tmp_path, max_epochs=2).fit(make(), Data(), ckpt_path=tmp_path / "a.ckpt")


@pytest.fixture(scope="module")
def saved(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    run = trainer(folder, max_steps=1, limit_val_batches=0)
    run.fit(StableDiffusionLoRA(str(tiny_folder), rank=2), Data())
    run.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


@pytest.mark.parametrize("change", ["lost", "extra", "other base", "other target"])
def test_a_checkpoint_that_does_not_fit_is_refused(make, saved, tmp_path, change, velocity_folder):
    checkpoint = torch.load(saved, weights_only=True)
    if change == "lost":
        checkpoint["state_dict"].pop(next(iter(checkpoint["state_dict"])))
    if change == "extra":
        checkpoint["state_dict"]["unet.mask"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "b.ckpt")
    module = make()
    if change == "other base":
        module = make(pretrained=str(random_stable_diffusion(tmp_path / "other", factor=2, seed=1)))
    if change == "other target":
        module = make(pretrained=str(velocity_folder))
    words = {
        "lost": "1 tensors are missing",
        "extra": "1 have no place",
        "other base": "base_model is",
        "other target": "prediction_type is epsilon in the checkpoint and v_prediction here",
    }
    with pytest.raises(ManifestError, match=words[change]):
        trainer(tmp_path, max_epochs=2).fit(module, Data(), ckpt_path=tmp_path / "b.ckpt")


def test_checkpoints_keep_what_a_defence_inserted(make, tmp_path):
    module = make()
    module.configure_model()
    module.unet.add_module("inserted", torch.nn.Linear(2, 2))
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    extra = {"unet.inserted.weight", "unet.inserted.bias"}
    assert set(checkpoint["state_dict"]) == set(adapters(module)) | extra
    result = module.load_state_dict({k: v for k, v in checkpoint["state_dict"].items() if k not in extra}, strict=False)
    assert set(result.missing_keys) == extra and not result.unexpected_keys
    group = module.configure_optimizers().param_groups[0]["params"]
    assert len(group) == len(adapters(module)) + 2


def test_one_step_under_bf16_mixed_keeps_adapters_in_float32(make, tmp_path):
    module = make(frozen_dtype="bfloat16", text_encoder_rank=2)
    trainer(tmp_path, precision="bf16-mixed", max_steps=1, limit_val_batches=1).fit(module, Data())
    assert {p.dtype for p in adapters(module).values()} == {torch.float32}
    assert any(p.any() for n, p in adapters(module).items() if "lora_B" in n)


def test_true_half_precision_is_refused_with_the_remedy(make, tmp_path):
    with pytest.raises(InputError, match="bf16-mixed"):
        trainer(tmp_path, precision="bf16-true", max_steps=1).fit(make(), Data())


def test_training_step_returns_what_defences_share(make, tmp_path):
    seen: list[Any] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                seen.append((outputs, copy.deepcopy(batch)))

    module = make(min_snr_gamma=5, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    run = trainer(tmp_path, callbacks=[Look()], limit_val_batches=0)
    run.fit(module, Data())
    draws = []
    for outputs, batch in seen:
        assert set(outputs) == {"loss", "per_sample_error", "draw"}
        error, draw = outputs["per_sample_error"], outputs["draw"]
        assert error.shape == (2, 4, 8, 8) and error.dtype == torch.float32
        assert torch.allclose(module.per_sample_error(batch, draw), error, atol=1e-5)
        assert torch.allclose(outputs["loss"], module.per_sample_loss(batch, draw).mean(), atol=1e-5)
        draws.append(draw.noise)
    assert not torch.equal(draws[0], draws[1])  # another step, another draw


def test_train_draws_do_not_depend_on_how_records_are_batched(make, tmp_path):
    noises: list[dict[int, torch.Tensor]] = []

    class Rebatched(Data):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

        def train_dataloader(self) -> Any:
            return DataLoader(Pictures(4), batch_size=self.size)

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            noises[-1].update(zip(batch["record"].tolist(), outputs["draw"].noise, strict=True))

    # Two micro-batches of one step against one batch: what two ranks are to one.
    for size, parts in ((4, 1), (2, 2)):
        noises.append({})
        options = {"callbacks": [Look()], "limit_val_batches": 0, "accumulate_grad_batches": parts}
        trainer(tmp_path, **options).fit(make(), Rebatched(size))
    assert noises[0].keys() == noises[1].keys() == {0, 1, 2, 3}
    assert all(torch.equal(noises[0][r], noises[1][r]) for r in noises[0])


def test_validation_loss_is_the_mean_over_records_of_fixed_draws(make, tmp_path):
    from lightning_privacy.modules.stable_diffusion.draws import stratified_draw

    module, other = make(), make(seed=3)
    values = [trainer(tmp_path).validate(m, Data(), verbose=False)[0]["val/loss"] for m in (module, module, other)]
    assert values[0] == values[1]
    pictures = Pictures(3, first=100)
    errors = []
    for i in range(3):
        item = pictures[i]
        batch = {"image": item["image"][None], "caption": [item["caption"]], "record": torch.tensor([item["record"]])}
        for k in range(2):
            draw = stratified_draw([item["record"]], k, 2, (4, 8, 8), 1000)
            with torch.no_grad(), other.reference():
                errors.append(other.per_sample_error(batch, draw).mean())
    assert values[0] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)
    assert values[2] == pytest.approx(values[0], rel=1e-5)  # adapters start at zero, and draws know no seed


class PictureLogger(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, int, int]] = []

    @property
    def name(self) -> str:
        return "pictures"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Scalars are of no interest here."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nor are hyper-parameters."""

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.images.append((key, len(images), step))


def test_validation_pictures_go_to_a_folder_and_to_loggers(make, tmp_path):
    from PIL import Image

    logger = PictureLogger()
    module = make(pictures_every_n_epochs=2, sampling_steps=1, guidance=1.0)
    trainer(tmp_path, max_epochs=3, logger=logger, log_every_n_steps=1, num_sanity_val_steps=1).fit(module, Data())
    (file,) = (tmp_path / "pictures").iterdir()
    assert file.name == "epoch-0001.png" and logger.images == [("val/pictures", 1, 6)]
    with Image.open(file) as grid:
        assert grid.size == (2 * 16 + 2, 16)  # the first validation batch has two captions


def test_a_plateau_schedule_watches_the_validation_loss(make, tmp_path):
    module = make(lr_scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=100.0))
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, Data())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_it_works_with_the_usual_checkpoint_callback(make, tmp_path):
    saver = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/loss", save_last=True)
    trainer(tmp_path, enable_checkpointing=True, callbacks=[saver]).fit(make(), Data())
    size = (tmp_path / "checkpoints" / "last.ckpt").stat().st_size
    assert size < 400_000  # the model itself is over a megabyte
