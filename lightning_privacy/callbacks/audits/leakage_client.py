"""A federated client of the audited module: its loss, and the update that leaves it."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.update import LocalTraining, Mode
from lightning_privacy.attacks.leakage.update_defence import RecordDefence, UpdateDefence
from lightning_privacy.callbacks.audits.inversion_target import batch_like
from lightning_privacy.callbacks.audits.untouched import precision_of
from lightning_privacy.core.randomness import derive_seed, seeded_generator
from lightning_privacy.errors import InputError, MissingProtocolError
from lightning_privacy.secrets.secret_module import secret_modules

__all__ = ["Client", "batch_of", "check_loss", "client_of"]

Values = dict[str, Tensor]
Pictures = Float[Tensor, "batch channels height width"]
_SAME_LOSS = 1e-3  # chosen here: relative; what half precision may change


def batch_of(template: Any, images: Pictures, labels: Int[Tensor, " batch"]) -> Any:
    """Return a batch of given records, whatever else a batch has filled from a template.

    Args:
        template: A batch as the loader yields it, with labels.
        images: The pictures.
        labels: Their classes.

    Example:
        >>> batch_of((torch.zeros(1, 1, 2, 2), torch.tensor([5])), torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))[1].tolist()
        [0, 1]
    """
    filled = batch_like(template, images)
    if isinstance(filled, Mapping):
        return {**filled, "label": labels}
    return type(filled)([filled[0], labels, *filled[2:]])


class Client:
    """A copy of a module that computes updates as the module's own training would; the module itself stays untouched.

    Args:
        module: The copy; its parameters that do not ask for gradients are not trained.
        template: A batch on the module's device.
        precision: Makes the context in which the module computes.
        smoothing: Label smoothing of its loss.
        notes: What was changed in the copy.
    """

    def __init__(
        self,
        module: L.LightningModule,
        template: Any,
        precision: Callable[[], Any],
        smoothing: float = 0.0,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.module, self.template, self.precision = module, template, precision
        self.smoothing, self.notes = smoothing, notes
        self._trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}

    def loss(self, images: Pictures, labels: Int[Tensor, " batch"], mode: Mode) -> Float[Tensor, ""]:
        """Return the loss that the module's own training minimises on a batch.

        Args:
            images: The pictures.
            labels: Their classes.
            mode: State of the normalisation layers.
        """
        self.module.train(mode == "train")
        module: Any = self.module
        batch = batch_of(self.template, images, labels)
        with self.precision():
            if callable(getattr(module, "per_sample_loss", None)):
                return module.per_sample_loss(batch).mean()
            outputs = _step(module, batch)
        found = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if not isinstance(found, Tensor):
            raise InputError(
                f"LeakageAudit: `{type(module).__name__}.training_step` returned no loss; return it, or add "
                "`per_sample_loss(batch)`, the loss of each record."
            )
        return found

    def scores(self, images: Pictures, labels: Int[Tensor, " batch"], mode: Mode) -> Float[Tensor, "batch classes"]:
        """Return class scores of a batch; see `loss`."""
        self.module.train(mode == "train")
        with self.precision():
            return self.module.logits(batch_of(self.template, images, labels)).float()  # pyright: ignore[reportCallIssue]

    def gradient(self, images: Pictures, labels: Int[Tensor, " batch"], mode: Mode) -> Values:
        """Return the gradient of the loss in every parameter that is trained; see `loss`."""
        loss = self.loss(images, labels, mode)
        slopes = torch.autograd.grad(loss, list(self._trained.values()), allow_unused=True)
        return {n: g.detach() for n, g in zip(self._trained, slopes, strict=True) if g is not None}

    def update(
        self,
        images: Pictures,
        labels: Int[Tensor, " batch"],
        mode: Mode,
        local: LocalTraining | None = None,
        defences: Sequence[UpdateDefence] = (),
        seed: int = 0,
    ) -> Values:
        """Return what the client shares of every parameter that is trained, private ones included.

        Args:
            images: The records' pictures.
            labels: Their classes.
            mode: State of the normalisation layers.
            local: Local training whose weight difference is shared, each step's gradient defended as in training; None
                shares one gradient.
            defences: What changes gradients, in order.
            seed: Of what layers and defences draw.
        """
        with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "leakage client"))
            if local is None:
                return self._defended(images, labels, mode, defences, seed, 0)
            before = {name: weight.detach().clone() for name, weight in self._trained.items()}
            try:
                with torch.no_grad():
                    for number, rows in enumerate(local.rows(len(images))):
                        at = rows.to(images.device)
                        with torch.enable_grad():
                            slopes = self._defended(images[at], labels[at], mode, defences, seed, number)
                        for name, slope in slopes.items():
                            self._trained[name].sub_(local.learning_rate * slope)
                    return {name: weight.detach() - before[name] for name, weight in self._trained.items()}
            finally:
                with torch.no_grad():
                    for name, weight in self._trained.items():
                        weight.copy_(before[name])

    def _defended(
        self,
        images: Pictures,
        labels: Int[Tensor, " batch"],
        mode: Mode,
        defences: Sequence[UpdateDefence],
        seed: int,
        step: int,
    ) -> Values:
        by_record = [d for d in defences if isinstance(d, RecordDefence) and d.resolved_unit == "record"]
        generators = [
            seeded_generator(seed, "update defence", step, i, device=images.device) for i in range(len(defences))
        ]
        if by_record:
            each = [self.gradient(images[i : i + 1], labels[i : i + 1], mode) for i in range(len(images))]
            stacked = {name: torch.stack([one[name] for one in each]) for name in each[0]}
            slopes = by_record[0].defended_records(stacked, generators[0])
        else:
            slopes = self.gradient(images, labels, mode)
        for defence, generator in zip(defences, generators, strict=True):
            if defence not in by_record:
                slopes = defence.defended_update(slopes, generator)
        return slopes


def _step(module: L.LightningModule, batch: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*self.log.*")
            # The class's: the instance's may belong to a run's defences, which refuse a copy.
            return type(module).training_step(module, batch, 0)
    except RuntimeError as failure:
        raise InputError(
            f"LeakageAudit: `{type(module).__name__}.training_step` cannot run outside of training ({failure}); add "
            "`per_sample_loss(batch)`, the loss of each record."
        ) from failure


def client_of(module: L.LightningModule, template: Any) -> Client:
    """Return a client that trains a copy of a module; dropout is left out, as the attacks leave it out.

    Args:
        module: The module; neither kept nor changed.
        template: A batch on its device, with labels.

    Raises:
        MissingProtocolError: The module has no ``logits``.
        InputError: Its secrets are not there.
    """
    if shut := [name for name, part in secret_modules(module) if part.is_locked]:
        raise InputError(
            f"LeakageAudit: `{', '.join(shut)}` is locked: random values stand where its secrets were, so that no client would "
            "share what this module computes. Load it with its vault."
        )
    if not callable(getattr(module, "logits", None)):
        raise MissingProtocolError(
            f"LeakageAudit needs `{type(module).__name__}.logits(batch)`, one row of class scores a picture; add it."
        )
    twin = copy.deepcopy(module)
    twin.zero_grad(set_to_none=True)
    dropped = [
        n for n, layer in twin.named_modules() if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
    ]
    for name in dropped:
        setattr(twin.get_submodule(name), "p", 0.0)  # noqa: B010  # a layer's attributes have no type
    notes = (f"Updates are computed without the dropout of {', '.join(dropped)}.",) if dropped else ()
    smoothing = float(getattr(module, "label_smoothing", 0.0) or 0.0)
    return Client(twin, template, lambda: precision_of(module), smoothing, notes)


def check_loss(client: Client, images: Pictures, labels: Int[Tensor, " batch"], mode: Mode, seed: int = 0) -> int:
    """Check that a client minimises the cross-entropy of its scores, and return the number of classes.

    Args:
        client: The client.
        images: Some records' pictures.
        labels: Their classes.
        mode: State of the normalisation layers.
        seed: Of what layers draw.

    Raises:
        InputError: The loss is another, or scores or labels are not those of a classifier.
    """
    name = type(client.module).__name__
    with torch.no_grad(), torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            scores = client.scores(images, labels, mode)
        except ValueError as refused:  # torch's own of normalisation over a single number
            raise InputError(
                f"LeakageAudit: `{name}` cannot compute a batch of {len(images)} in mode {mode} ({refused}); set `mode: eval` "
                "or larger `batch_sizes`."
            ) from refused
        if scores.ndim != 2 or int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
            raise InputError(
                f"LeakageAudit: `{name}.logits` gives scores of shape {tuple(scores.shape)} for labels from "
                f"{int(labels.min())} to {int(labels.max())}; it needs one row of class scores a picture, and labels that "
                "number the classes from 0."
            )
        torch.manual_seed(seed)
        own = float(client.loss(images, labels, mode))
    expected = float(F.cross_entropy(scores, labels, label_smoothing=client.smoothing))
    if not abs(own - expected) <= _SAME_LOSS * max(1.0, abs(expected)):
        raise InputError(
            f"LeakageAudit attacks the gradient of the cross-entropy of `logits(batch)`, which is {expected:.4g} on a batch "
            f"whose loss {name} gives as {own:.4g}; attacks would match another loss. Audit a classifier that minimises "
            "cross-entropy."
        )
    return scores.shape[1]
