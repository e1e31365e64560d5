import hashlib
from contextlib import contextmanager

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.protocols import Draw


class Rows(Dataset):
    def __init__(self, images, records, indices):
        self.images, self.records, self.indices = images, records, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        k = self.indices[i]
        record = self.records[k]
        return {"image": self.images[k], "caption": f"picture {k % 3}", "label": record % 3, "record": record}


class FakeSplit(L.LightningDataModule):
    """The interface of MembershipSplit, with roles fixed by hand."""

    def __init__(self, per_role=10, size=8, batch_size=4):
        super().__init__()
        names = ["aux_member", "eval_member", "aux_nonmember", "attack_nonmember", "val", "holdout"]
        n = per_role * len(names)
        generator = torch.Generator().manual_seed(7)
        self.images = torch.rand(n, 3, size, size, generator=generator)
        self.record_ids = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.images]
        self.records = [int(i[:16], 16) >> 1 for i in self.record_ids]
        roles = {name: list(range(k * per_role, (k + 1) * per_role)) for k, name in enumerate(names)}
        self.roles = {"member": sorted(roles["aux_member"] + roles.pop("eval_member")), **roles}
        self.split_hash = "f" * 64
        self.batch_size = batch_size

    def indices_of(self, role):
        if role == "eval_member":
            return [i for i in self.roles["member"] if i not in set(self.roles["aux_member"])]
        return self.roles[role]

    def loader(self, role, batch_size=None):
        return DataLoader(Rows(self.images, self.records, self.indices_of(role)), batch_size or self.batch_size)

    def train_dataloader(self):
        return self.loader("member")

    def val_dataloader(self):
        return self.loader("val")


class ToyDiffusion(L.LightningModule):
    """A denoiser of pictures with a batch norm, a frozen part in evaluation mode, and a switchable fine-tuned part."""

    def __init__(self, size=8, leak=0.0):
        super().__init__()
        self.base = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.tuned = nn.Conv2d(3, 3, 1)
        self.dropout = nn.Dropout(0.5)
        nn.init.zeros_(self.tuned.weight)
        nn.init.zeros_(self.tuned.bias)
        self.base.requires_grad_(False)
        self.leak, self.off, self.calls, self.members = leak, False, 0, ()

    def train(self, mode=True):
        super().train(mode)
        self.base.training = False
        return self

    def sample_draw(self, batch, generator):
        x = batch["image"]
        t = torch.randint(0, 1000, (len(x),), generator=generator)
        return Draw(t, torch.randn(x.shape, generator=generator))

    def per_sample_error(self, batch, draw=None):
        self.calls += 1
        if draw is None:
            draw = self.sample_draw(batch, torch.default_generator)
        x = batch["image"]
        scale = (draw.timesteps / 1000).view(-1, 1, 1, 1)
        noised = x * (1 - scale) + scale * draw.noise
        out = self.dropout(self.norm(self.base(noised)))
        if not self.off:
            out = out + self.tuned(noised)
        error = (out - draw.noise).square()
        if self.leak and not self.off:  # a planted leak: members' errors are lower
            member = torch.tensor([r in self.members for r in batch["record"].tolist()])
            error = error * torch.where(member, 1 - self.leak, 1.0).view(-1, 1, 1, 1)
        return error

    @contextmanager
    def reference(self):
        self.off = True
        try:
            yield self
        finally:
            self.off = False

    def generate(self, prompts, *, seed=0, **options):
        pictures = [
            torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1000 * seed + i)) for i in range(len(prompts))
        ]
        return torch.stack(pictures)

    def training_step(self, batch, batch_idx):
        loss = self.per_sample_error(batch).mean()
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.per_sample_error(batch).mean(), batch_size=len(batch["record"]))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)


class ToyClassifier(L.LightningModule):
    """No draws, no reference: a plain classifier on the mean colour."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    def logits(self, batch):
        return self.net(batch["image"])

    def per_sample_error(self, batch, draw=None):
        target = (batch["record"] % 3).long()
        return nn.functional.cross_entropy(self.logits(batch), target, reduction="none")

    def training_step(self, batch, batch_idx):
        return self.per_sample_error(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.per_sample_error(batch).mean(), batch_size=len(batch["record"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def split():
    return FakeSplit()


@pytest.fixture
def diffusion(split):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ToyDiffusion()
    module.members = {split.records[i] for i in split.roles["member"]}
    return module


@pytest.fixture
def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ToyClassifier()


@pytest.fixture
def trainer_of(tmp_path):
    def build(*callbacks, **options):
        defaults = {
            "default_root_dir": tmp_path,
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return L.Trainer(callbacks=list(callbacks), **(defaults | options))

    return build
