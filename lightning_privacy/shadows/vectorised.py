"""Training several small shadow models at once: the same batches, optimizer and schedule as one after the other."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_privacy.core.ranks import alone
from lightning_privacy.errors import PrivacyError
from lightning_privacy.shadows.build import Build, build_shadow, rebuild_layers, seeded
from lightning_privacy.shadows.refusals import CannotStack, check_optimizer
from lightning_privacy.shadows.sequential import copied_state, quiet, shadow_trainer, training_seed
from lightning_privacy.shadows.shadow_split import ShadowSplit
from lightning_privacy.shadows.stacked_batches import StackedBatches, refill
from lightning_privacy.shadows.stacked_steps import StackedModels, clip_each

__all__ = ["Job", "Stacked", "train_stacked"]

# Bytes of weights, optimizer and activations at once; chosen here: 1 GiB on a CPU, of a GPU most of what is free.
CPU_BYTES = 1 << 30
GPU_SHARE = 0.6
# Activations of one model's batch above which a stack gains nothing on a CPU. Chosen here: `benchmarks/shadow_pool.py` gains
# at 1 MiB (a small network on digits) and loses at 114 (a ResNet-18 on 16 pictures of CIFAR's size).
CPU_BUSY = 16 << 20
COPIES = 5  # of the weights: themselves, their gradient, two moments of the optimizer, the copy of a part of the models


@dataclass(frozen=True)
class Job:
    """One shadow model to be trained.

    Args:
        shadow: Its number.
        seed: Of the module and of the global random state.
        split: Its data.
    """

    shadow: int
    seed: int
    split: ShadowSplit


@dataclass(frozen=True)
class Stacked:
    """A trained shadow model.

    Args:
        shadow: Its number.
        state: Its state dict, on the CPU.
        losses: Training loss of each step.
    """

    shadow: int
    state: dict[str, Any]
    losses: list[float]


@dataclass
class _Recipe(L.Callback):
    """Lets Lightning set everything up as for training, takes it, and ends the run before the first batch."""

    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    n_batches: int = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.optimizers, self.schedulers = trainer.optimizers, trainer.lr_scheduler_configs
        self.n_batches = int(trainer.num_training_batches)
        trainer.should_stop = True


def train_stacked(
    build: Build, jobs: Sequence[Job], trainer: Mapping[str, Any], folder: Path, if_faster: bool = False
) -> Iterator[Stacked]:
    """Train shadow models at once, in chunks that fit the memory; yield each when its chunk is done.

    A module's ``functional_loss`` must be a function of its arguments: numbers that it reads from the module itself
    (an epoch, a seed) are the first module's in every copy.

    Args:
        build: Makes a module from a seed.
        jobs: The shadow models.
        trainer: Arguments of the trainer; `why_not` has nothing against them.
        folder: Root folder of the trainer.
        if_faster: Refuse models that keep a CPU busy one by one.

    Raises:
        CannotStack: they cannot be trained at once, or need not.
    """
    with alone():
        by_steps: dict[int, list[Job]] = defaultdict(list)
        for job in jobs:
            # An optimizer counts its steps once for all, so only equally long runs go together.
            by_steps[job.split._new_sampler(0, 1).n_batches].append(job)
        for together in by_steps.values():
            most = _at_once(build, together, trainer, folder, if_faster)
            size = ceil(len(together) / ceil(len(together) / most))
            for start in range(0, len(together), size):
                yield from _train_chunk(build, together[start : start + size], trainer, folder)


def _module(build: Build, seed: int, device: torch.device) -> L.LightningModule:
    module, callbacks = build_shadow(build, seed)
    with seeded(training_seed(seed)):
        rebuild_layers(module, callbacks)
    return module.to(device)


def _at_once(
    build: Build, jobs: Sequence[Job], trainer: Mapping[str, Any], folder: Path, if_faster: bool = False
) -> int:
    """Return how many models fit, after checking on one batch that a stack computes what a module does."""
    running = shadow_trainer(trainer, [], folder)
    device = running.strategy.root_device
    some = jobs[:2]
    models = StackedModels([_module(build, job.seed, device) for job in some], trainer.get("precision"))
    batches = StackedBatches([job.split for job in some], device, models.base)
    models_with_it, form, tensors = batches.batch(0, 0)[0]
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    first = models_with_it[0]
    own = {name: each[first].detach().clone().requires_grad_() for name, each in models.parameters.items()}
    state = {name: each[first].clone() for name, each in models.buffers.items()}
    single = refill(form, iter([tensor[0] for tensor in tensors]))
    with seeded(0), models.arithmetic(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        try:
            alone_loss = models.base.functional_loss(own, state, single)  # pyright: ignore[reportCallIssue]
        except PrivacyError as error:  # a module that cannot say its loss as a function, as under mixup
            raise CannotStack(str(error)) from error
    index = torch.tensor(models_with_it, device=device)
    try:
        stacked = models.losses(
            {name: each[index] for name, each in models.parameters.items()},
            {name: each[index] for name, each in models.buffers.items()},
            form,
            tensors,
        )
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        told = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if "randomness" in str(error):
            told = "it draws random numbers, as dropout does, which would be others than in single training"
        raise CannotStack(f"`functional_loss` cannot run for several models at once: {told}") from error
    # Half precision rounds at 2^-8.
    if not torch.allclose(
        stacked[0].float(), alone_loss.float(), rtol=1e-4 if models.precision != "bf16-mixed" else 2e-2
    ):
        raise CannotStack(
            f"`functional_loss` gives {float(stacked[0]):.6g} in a stack and {float(alone_loss):.6g} alone"
        )
    kept = sum(saved.values())
    if if_faster and device.type == "cpu" and kept > CPU_BUSY:
        raise CannotStack(f"one model's batch, with {kept / 2**20:.0f} MiB of activations, keeps a CPU busy by itself")
    weights = sum(each[0].nbytes for each in [*models.parameters.values(), *models.buffers.values()])
    needed = COPIES * weights + kept + sum(tensor[0].nbytes for tensor in tensors)
    budget = GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else CPU_BYTES
    return max(1, int(budget / max(1, needed)))


def _train_chunk(build: Build, jobs: Sequence[Job], trainer: Mapping[str, Any], folder: Path) -> Iterator[Stacked]:
    recipe = _Recipe()
    running = shadow_trainer({**trainer, "limit_val_batches": 0}, [recipe], folder)
    device = running.strategy.root_device
    base, _ = build_shadow(build, jobs[0].seed)
    with seeded(training_seed(jobs[0].seed)), quiet():
        running.fit(base, datamodule=jobs[0].split)
        if running.interrupted:
            raise KeyboardInterrupt
    check_optimizer(recipe.optimizers, recipe.schedulers)
    modules = [base.to(device), *(_module(build, job.seed, device) for job in jobs[1:])]
    models = StackedModels(modules, trainer.get("precision"))
    models.adopt(recipe.optimizers[0])
    batches = StackedBatches([job.split for job in jobs], device, base)
    with seeded(training_seed(jobs[0].seed)):
        losses = _run(models, batches, recipe, running)
    curves = torch.stack(losses, dim=1).cpu().tolist() if losses else [[] for _ in jobs]
    for place, job in enumerate(jobs):
        models.write_back(place)
        yield Stacked(job.shadow, copied_state(base), curves[place])


def _run(models: StackedModels, batches: StackedBatches, recipe: _Recipe, running: L.Trainer) -> list[Tensor]:
    """Do what Lightning's loops do: epochs, batches, clipping, the optimizer's step, the schedulers'."""
    optimizer, losses = recipe.optimizers[0], []
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    algorithm = running.gradient_clip_algorithm.value if running.gradient_clip_algorithm else "norm"
    most_epochs, most_steps = running.max_epochs or 0, running.max_steps
    for epoch in count():
        if most_epochs != -1 and epoch >= most_epochs:
            break
        for batch_idx in range(min(batches.n_batches, recipe.n_batches)):
            if 0 <= most_steps <= len(losses):
                return losses
            optimizer.zero_grad()
            losses.append(models.backward(batches.batch(epoch, batch_idx)))
            if running.gradient_clip_val:
                gradients = [each.grad for each in stepped if each.grad is not None]
                clip_each(gradients, running.gradient_clip_val, algorithm)
            optimizer.step()
            _schedule(recipe, "step", batch_idx)
        _schedule(recipe, "epoch", epoch)
    return losses


def _schedule(recipe: _Recipe, interval: str, place: int) -> None:
    for each in recipe.schedulers:
        if each.interval == interval and (place + 1) % each.frequency == 0:
            each.scheduler.step()
