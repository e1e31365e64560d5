"""Small stand-ins for models, data, defences and audits."""

import json

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property


class Line(L.LightningModule):
    """A line through points.

    Args:
        slope: The slope to start from.
        poison_at: Step at which the loss becomes NaN; -1 for never.
        missing: Pretend that the weights are missing.
    """

    def __init__(self, slope: float = 1.0, poison_at: int = -1, missing: bool = False) -> None:
        super().__init__()
        self.slope, self.poison_at, self.missing = slope, poison_at, missing
        self.weight = torch.nn.Parameter(torch.tensor([[slope]]))

    def configure_model(self):
        if self.missing:
            raise InputError("The weights are missing from nowhere/; download them first.")

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = ((x @ self.weight - y) ** 2).mean()
        if self.global_step == self.poison_at:
            loss = loss * float("nan")
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/loss", ((x @ self.weight - y) ** 2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Points(L.LightningDataModule):
    """Points on a line.

    Args:
        n: How many.
    """

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.n = n

    def data(self):
        x = torch.linspace(-1, 1, self.n)[:, None]
        return TensorDataset(x, 0.5 * x)


class Wrapped(L.LightningDataModule):
    """Another datamodule's points.

    Args:
        inner: The other one.
        split_seed: Stands for a split.
    """

    def __init__(self, inner: L.LightningDataModule, split_seed: int = 0) -> None:
        super().__init__()
        self.inner, self.split_seed = inner, split_seed

    @property
    def split_hash(self):
        return f"{self.split_seed:064x}"

    def write_split(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"split_hash": self.split_hash}))

    def state_dict(self):
        return {"split_hash": self.split_hash}

    def train_dataloader(self):
        return DataLoader(self.inner.data(), batch_size=4)

    def val_dataloader(self):
        return DataLoader(self.inner.data(), batch_size=4)


class Louder(Defence):
    """Multiplies the loss.

    Args:
        factor: By how much.
        tone: High or low.
    """

    name = "louder"
    slots = frozenset({Slot.OBJECTIVE})

    def __init__(self, factor: float = 2.0, tone: str = "high") -> None:
        if tone not in ("high", "low"):
            raise InputError(f"Louder: `tone` is {tone}; it must be high or low.")
        self.factor, self.tone = factor, tone

    def objective(self, step):
        return self.factor * step.loss


class NeedsClean(Defence):
    """Requires a separable, unsharded loss."""

    name = "needs_clean"
    slots = frozenset({Slot.GRADIENT})
    requires = frozenset({Property.PER_SAMPLE_SEPARABLE, Property.UNSHARDED})

    def transform_gradients(self, module, optimizer):
        pass


class Dirty(Defence):
    """Breaks separability."""

    name = "dirty"
    slots = frozenset({Slot.OBJECTIVE})
    breaks = frozenset({Property.PER_SAMPLE_SEPARABLE})

    def objective(self, step):
        return step.loss


class CoinAudit(L.Callback):
    """An attack that guesses.

    Args:
        value: The AUROC that it claims.
    """

    calls = 0

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def on_train_epoch_end(self, trainer, pl_module):
        self.audit(trainer, pl_module, trainer.current_epoch + 1)

    def audit(self, trainer, module, epoch):
        type(self).calls += 1
        result = AttackResult(
            "coin", "coin", "nothing", 0, "", {"member": 4, "holdout": 4}, {"auroc": Metric(self.value, 0.4, 0.6)},
            strongest=True, step=trainer.global_step, epoch=epoch, roc=((0.0, 0.0), (1.0, 1.0)),
        )  # fmt: skip
        RunFolder(trainer.default_root_dir).append_result(result)
        return [result]
