"""Defend a project that knows nothing of this package: own network, own training step, own data, no subclassing.

    python examples/existing_project.py

The module below is an ordinary pixel-space diffusion model. Two functions tell the defence how to draw and how to
measure one record's error; everything else stays as it was. Both usual ways of handing data to Lightning are shown.
"""

import tempfile

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_privacy.callbacks import MembershipAudit, SMPLoRA
from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.datamodules.orl import read_orl
from lightning_privacy.protocols import Draw

# ---------------------------------------------------------------- the existing project, unchanged


class SmallUNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.leave = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        level = (t / 1000).view(-1, 1, 1, 1).expand_as(x)
        high = torch.relu(self.enter(torch.cat([x, level], 1)))
        return self.leave(torch.cat([high, torch.relu(self.up(torch.relu(self.down(high))))], 1))


class FaceDiffusion(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = SmallUNet()
        self.register_buffer("alpha_bar", torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0))

    def noisy(self, x: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return a.sqrt() * x + (1 - a).sqrt() * noise

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, _ = batch
        t, noise = torch.randint(0, 1000, (len(x),), device=x.device), torch.randn_like(x)
        loss = nn.functional.mse_loss(self.net(self.noisy(x, t, noise), t), noise)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def faces() -> TensorDataset:
    pictures = [
        torch.from_numpy(read_orl(p, s).copy()).float()[None, None] / 127.5 - 1
        for p in range(21, 41)
        for s in range(1, 11)
    ]
    small = nn.functional.interpolate(torch.cat(pictures), size=(32, 32), mode="area")
    return TensorDataset(small, torch.arange(21, 41).repeat_interleave(10))


class FaceData(L.LightningDataModule):
    def setup(self, stage: str) -> None:
        self.data = faces()

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.data, batch_size=16, shuffle=True)


# ---------------------------------------------------------------- what is new


def draw(module: FaceDiffusion, batch: tuple[torch.Tensor, torch.Tensor], generator: torch.Generator) -> Draw:
    x, _ = batch
    t = torch.randint(0, 1000, (len(x),), generator=generator)
    return Draw(t.to(x.device), torch.randn(x.shape, generator=generator).to(x.device))


def error(module: FaceDiffusion, batch: tuple[torch.Tensor, torch.Tensor], draw: Draw | None = None) -> torch.Tensor:
    x, _ = batch
    if draw is None:  # audits pin the global random state for a module without `sample_draw`
        draw = Draw(torch.randint(0, 1000, (len(x),), device=x.device), torch.randn_like(x))
    return (module.net(module.noisy(x, draw.timesteps, draw.noise), draw.timesteps) - draw.noise).square()


def main(epochs: int = 3) -> None:
    for style, data in {
        "a LightningDataModule": FaceData(),
        "a data set": L.LightningDataModule.from_datasets(train_dataset=faces(), batch_size=16),
    }.items():
        L.seed_everything(0)
        # No `reference()` here (nothing is an adapter), so the proxy reads pooled error maps.
        defence = SMPLoRA(strength=0.5, proxy="pooled_map", error_fn=error, draw_fn=draw)
        audit = MembershipAudit(attacks=["averaged_loss"], error_fn=error, draws=2, bootstrap=200)
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[defence, audit],
            default_root_dir=tempfile.mkdtemp(),
            logger=False,
            enable_checkpointing=False,
            limit_val_batches=0,  # the project has no validation step
        )
        trainer.fit(FaceDiffusion(), MembershipSplit(data, split_seed=0))
        gain = float(trainer.callback_metrics["defence/smp_lora/gain"])
        print(f"{style}: trained {trainer.global_step} steps, gain of the proxy {gain:.3f} (it guesses at -0.693)")


if __name__ == "__main__":
    main()
