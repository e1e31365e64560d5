"""The victim's model as the server that attacks it knows it: everything public, and what the client keeps to itself."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad

from lightning_privacy.attacks.leakage.update import Mode
from lightning_privacy.errors import InputError

__all__ = ["LeakageTarget", "LockView", "Secret", "target_of"]

Values = Mapping[str, Tensor]
Draw = Callable[[torch.Generator], Values]


@dataclass(frozen=True)
class Secret:
    """A parameter that the client uses and never shares, such as the scale or the shift of a locked normalisation layer.

    Args:
        shape: Its shape.
        nonnegative: Whether the defence's activation (ReLU, softplus) keeps it at or above zero, which the attacker knows.
        gates: Public parameter whose gradient vanishes in row c where entry c of this secret is zero: the layer before
            a locked normalisation layer, for its scale. None where there is none.
    """

    shape: tuple[int, ...]
    nonnegative: bool = False
    gates: str | None = None


@dataclass(frozen=True)
class LockView:
    """A lock whose own weights the attacker knows, as the server does in the round in which it distributed them.

    Args:
        derive: Key -> the secrets that the lock makes of it; differentiable.
        draw_key: Generator -> a key drawn as clients draw theirs.
    """

    derive: Callable[[Tensor], Values]
    draw_key: Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class LeakageTarget:
    """A model as the attacker knows it; built by `target_of`.

    Args:
        skeleton: The network without any value: every parameter and buffer is on the ``meta`` device.
        parameters: Public parameters at the start of the round, by name.
        buffers: Buffers at the start of the round, by name.
        secrets: What the client never shares, by name.
        image_shape: Channels, height and width of the pictures.
        classes: Number of classes.
        loss: Scores and labels (indices, or probabilities of the classes) -> mean loss.
        draw_secrets: Generator -> secrets as another client could have them; what the attacker expects before it has seen
            the update. None where it has no idea.
        lock: The lock, where the attacker knows its weights.
    """

    skeleton: nn.Module
    parameters: Values
    buffers: Values
    secrets: Mapping[str, Secret]
    image_shape: tuple[int, int, int]
    classes: int
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    draw_secrets: Draw | None = None
    lock: LockView | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the parameters."""
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        """Return where the parameters are."""
        return next(iter(self.parameters.values())).device

    def complete(self, secrets: Values) -> dict[str, Tensor]:
        """Return every parameter, the secret ones as supposed.

        Args:
            secrets: A guess of every secret.

        Raises:
            InputError: A secret is missing, or a name is none.
        """
        if set(secrets) != set(self.secrets):
            raise InputError(
                f"The model's secrets are {sorted(self.secrets)}, but values are given for {sorted(secrets)}; give one for "
                "each of them."
            )
        return {**self.parameters, **secrets}

    def with_secrets(self, secrets: Values) -> "LeakageTarget":
        """Return the target of an attacker who takes these secrets for the true ones."""
        known = {name: value.detach().to(self.device, self.dtype) for name, value in secrets.items()}
        return replace(self, parameters=self.complete(known), secrets={}, draw_secrets=None, lock=None)

    def to(self, dtype: torch.dtype) -> "LeakageTarget":
        """Return a copy in another precision."""

        def cast(values: Values) -> dict[str, Tensor]:
            return {k: v.to(dtype) if v.is_floating_point() else v for k, v in values.items()}

        return replace(self, parameters=cast(self.parameters), buffers=cast(self.buffers))

    def scores(
        self, parameters: Values, images: Float[Tensor, "batch channels height width"], mode: Mode
    ) -> Float[Tensor, "batch classes"]:
        """Return class scores under given parameters.

        Args:
            parameters: Every parameter by name.
            images: Pictures in [0, 1].
            mode: State of the normalisation layers.
        """
        self.skeleton.train(mode == "train")  # its own method: a frozen part may stay in evaluation mode
        for layer in self.skeleton.modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.running_mean is not None:
                # In training no gradient depends on running statistics, and updating them would change our buffers.
                layer.track_running_stats = not layer.training
        return functional_call(self.skeleton, {**parameters, **self.buffers}, (images,))

    def gradients(
        self,
        parameters: Values,
        images: Float[Tensor, "batch channels height width"],
        labels: Tensor,
        mode: Mode,
        names: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """Return the gradient of the mean loss, itself differentiable in everything that is passed.

        Args:
            parameters: Every parameter by name, see `complete`.
            images: Pictures in [0, 1].
            labels: Class indices, or a row of class probabilities a picture.
            mode: State of the normalisation layers.
            names: Parameters whose gradient is wanted; all by default.
        """
        wanted = {name: parameters[name] for name in (parameters if names is None else names)}

        def loss(values: dict[str, Tensor]) -> Tensor:
            return self.loss(self.scores({**parameters, **values}, images, mode), labels)

        return grad(loss)(wanted)


def target_of(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    classes: int,
    secrets: Mapping[str, Secret] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    draw_secrets: Draw | None = None,
    lock: LockView | None = None,
) -> LeakageTarget:
    """Return what the attacker knows of a model: copies of its public values, and names and shapes of its secrets.

    The model itself is neither kept nor changed. A locked model is given as the network that the lock amounts to: an
    ordinary one, in which the scale and the shift are parameters. Batch normalisation uses the batch's own statistics in
    mode ``train`` without keeping running ones, which no gradient depends on.

    Args:
        module: Pictures -> class scores, as at the start of the round.
        image_shape: Channels, height and width of the pictures.
        classes: Number of classes.
        secrets: What the client never shares, by parameter name.
        loss: Scores and labels -> mean loss.
        draw_secrets: See `LeakageTarget`.
        lock: See `LeakageTarget`.

    Returns:
        The target, on the model's device.

    Raises:
        InputError: A secret is no parameter of the model, or has another shape.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4))
        >>> target = target_of(net, (1, 8, 8), 4, {"1.weight": Secret((2,)), "1.bias": Secret((2,))})
        >>> sorted(target.parameters)
        ['0.bias', '0.weight', '3.bias', '3.weight']
    """
    hidden = dict(secrets or {})
    named = dict(module.named_parameters())
    for name, secret in hidden.items():
        if name not in named or tuple(named[name].shape) != secret.shape:
            found = tuple(named[name].shape) if name in named else "no parameter"
            raise InputError(
                f"The secret `{name}` of shape {secret.shape} is {found} in the model; name one of its own."
            )
    public = {name: value.detach().clone() for name, value in named.items() if name not in hidden}
    buffers = {name: value.detach().clone() for name, value in module.named_buffers()}
    skeleton = copy.deepcopy(module).to("meta").requires_grad_(False)
    notes: list[str] = []
    for name, layer in skeleton.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            layer.p = 0.0
            notes.append(f"the attacker leaves out the dropout of `{name}`, whose masks it does not know")
    return LeakageTarget(
        skeleton, public, buffers, hidden, image_shape, classes, loss, draw_secrets, lock, tuple(notes)
    )
