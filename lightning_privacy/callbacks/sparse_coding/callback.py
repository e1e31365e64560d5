"""The sparse-coding defence: says which convolutions become sparse codes, and when their dictionaries learn."""

import re
from typing import Any, ClassVar, Literal

import lightning.pytorch as L
import torch
from torch import nn

from lightning_privacy.callbacks.sparse_coding.functional import Form, Transfer
from lightning_privacy.callbacks.sparse_coding.layers import Backward, DictionaryRule, SparseCode2d
from lightning_privacy.callbacks.sparse_coding.presets import preset
from lightning_privacy.callbacks.sparse_coding.solvers import Solver
from lightning_privacy.callbacks.sparse_coding.warm_up import training_records, warm_up
from lightning_privacy.core.defence import Defence, Slot, SurgeryReport
from lightning_privacy.core.ranks import mean_over_ranks
from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.properties import Property

__all__ = ["SparseCoding"]


class SparseCoding(Defence):
    """Let what follows see a sparse code of the picture, not its convolutions (SCA, arXiv 2403.14772).

    The first convolutions of any module become sparse-coding layers: each minimises ``1/2 ||s - a * Phi||^2 + lam
    ||a||_1`` for its standardised input s, and passes the code a on. They keep the channels, stride and output size of
    the convolutions and have no bias. The defaults are this project's recommendation, a fast solver of the exact
    objective; for the published settings see `released` and `standard`, and the method card.

    Args:
        lam: lambda, at least 0: the larger, the fewer units are active.
        layers: How many convolutions to replace, the first ones in the order of the module; not used with ``names``.
        names: Which convolutions instead: globs, or regular expressions after ``re:``, of their dotted names.
        kernel_size: Side of the atoms in pixels; None for that of each convolution.
        solver: ``fista`` or ``lca``.
        tau: Time constant, whose inverse is the step; None takes the safe one for each dictionary.
        iters: Iterations of the solver, at least 1.
        form: ``residual`` (the exact objective) or ``lateral`` (as published; borders differ, slower).
        nonneg: Whether codes may not be negative.
        transfer: ``soft`` threshold, or ``hard`` (for ``lca``).
        standardize: Give every input of a layer mean 0 and variance 1 first, picture by picture.
        dictionary: ``fixed`` (random, as released), ``hebbian`` (learned by the local rule after each step) or ``gradient``
            (learned by the module's optimizer).
        eta: Rate of the local rule, in training and warm-up, at least 0.
        clip: Largest change of an entry of a dictionary in one step of the local rule.
        backward: How gradients pass a layer: ``implicit``, ``checkpoint`` or ``unroll``; see `SparseCode2d`.
        warm_up_epochs: Passes of the local rule over the training pictures before the first step, without labels.
        warm_up_batch_size: Pictures a step of the warm-up, of all processes together.
        seed: Of the dictionaries and of the warm-up's order.

    Raises:
        InputError: an argument is out of range, or two contradict each other.

    Example:
        >>> SparseCoding().iters, SparseCoding.released().iters, SparseCoding.standard(lam=0.25).lam
        (16, 500, 0.25)
    """

    name: ClassVar[str] = "sparse_coding"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY, Slot.POST_STEP})
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.attacks.inversion.sparse_adaptive:SynthesisAttack",
        "lightning_privacy.attacks.inversion.sparse_adaptive:SurrogateFromDecoder",
    )
    requires = frozenset({Property.UNSHARDED, Property.LAUNCHER_KEEPS_MODULE})

    def __init__(
        self,
        lam: float | int | Literal["auto"] = 0.5,  # arXiv 2403.14772's released code, most sets
        layers: int = 2,  # the same
        names: list[str] | None = None,
        kernel_size: int | None = None,
        solver: Solver = "fista",
        tau: float | int | None = None,
        iters: int = 16,  # chosen here: reaches below the objective of the released 500 of LCA
        form: Form = "residual",
        nonneg: bool = True,
        transfer: Transfer = "soft",
        standardize: bool = True,
        dictionary: DictionaryRule = "fixed",
        eta: float | int = 0.01,  # lcapt's example of dictionary learning on CIFAR-10
        clip: float | int | None = None,
        backward: Backward = "implicit",
        warm_up_epochs: int = 0,
        warm_up_batch_size: int = 64,  # lcapt's example
        seed: int = 0,
    ) -> None:
        if lam == "auto":
            raise InputError(
                "SparseCoding: `lam: auto` would need several trainings, and a run is one. Search with "
                "`lightning_privacy.callbacks.sparse_coding.auto_lambda.search_lambda`, then give the number it returns."
            )
        for argument, value, least in (
            ("layers", layers, 1),
            ("warm_up_epochs", warm_up_epochs, 0),
            ("warm_up_batch_size", warm_up_batch_size, 1),
        ):
            if value < least:
                raise InputError(f"SparseCoding: `{argument}` is {value}; it must be at least {least}.")
        if names is not None and not names:
            raise InputError("SparseCoding: `names` is empty; name a convolution, or leave it null for the first ones.")
        super().__init__()
        self.lam, self.layers, self.names, self.kernel_size = lam, layers, names, kernel_size
        self.tau, self.iters, self.nonneg, self.standardize = tau, iters, nonneg, standardize
        self.solver: Solver = solver
        self.form: Form = form
        self.transfer: Transfer = transfer
        self.dictionary: DictionaryRule = dictionary
        self.backward: Backward = backward
        self.eta, self.clip = eta, clip
        self.warm_up_epochs, self.warm_up_batch_size, self.seed = warm_up_epochs, warm_up_batch_size, seed
        broken = {Property.STABLE_STATE_DICT}
        if dictionary == "hebbian" or warm_up_epochs:
            broken.add(Property.SIDE_STATE_PRIVATE)  # the dictionaries are fitted on members beside the loss
        self.breaks = frozenset(broken)
        with torch.random.fork_rng(devices=[]):
            SparseCode2d(1, 1, kernel_size or 1, padding=0, **self._how())  # its checks, before anything is trained
        self._warmed_up = False

    @classmethod
    def released(cls, **overrides: Any) -> "SparseCoding":
        """Return the setting of the paper's released code: two layers, random dictionaries, 500 iterations of LCA."""
        return cls(**preset("sca-released", **overrides))

    @classmethod
    def standard(cls, **overrides: Any) -> "SparseCoding":
        """Return its one-layer baseline, Sparse-Standard, with the released lambda for CIFAR-10 and CelebA."""
        return cls(**preset("sparse-standard", **overrides))

    @classmethod
    def learned(cls, **overrides: Any) -> "SparseCoding":
        """Return the fast solver with dictionaries learned by the local rule, from a warm-up on."""
        return cls(**preset("sca-learned", warm_up_epochs=1, **overrides))

    def _how(self) -> dict[str, Any]:
        words = (
            "lam",
            "solver",
            "tau",
            "iters",
            "form",
            "nonneg",
            "transfer",
            "standardize",
            "dictionary",
            "eta",
            "backward",
        )
        return {
            **{word: getattr(self, word) for word in words},
            "clip": float("inf") if self.clip is None else self.clip,
        }

    # --- surgery -----------------------------------------------------------------------------------------------

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget an earlier run's warm-up."""
        self._warmed_up = False

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Replace the convolutions."""
        places = {id(part): name for name, part in module.named_modules()}

        def replace(conv: nn.Module) -> SparseCode2d:
            return SparseCode2d.from_conv(conv, f"`{places[id(conv)]}`", self.kernel_size, **self._how())

        names = self.names or [f"re:{re.escape(name)}" for name in self._first(module)]
        report = replace_modules(module, SparseCode2d, types=nn.Conv2d, names=names, factory=replace, seed=self.seed)
        for name in report.layers:
            layer = module.get_submodule(name)
            if isinstance(layer, SparseCode2d):
                layer.origin = layer.origin or name
        shapes = [[*layer.weight.shape, *layer.stride, *layer.padding] for layer in _sparse_layers(module).values()]
        return SurgeryReport(report.layers, report.parameters_added, {**report.layout, "shapes": shapes})

    def _first(self, module: nn.Module) -> list[str]:
        found = [
            part.origin or name if isinstance(part, SparseCode2d) else name
            for name, part in module.named_modules()
            if isinstance(part, nn.Conv2d | SparseCode2d)
        ]
        if len(found) < self.layers:
            raise NoEffectError(
                f"`{self.name}` is to replace the first {self.layers} convolutions (nn.Conv2d) of this "
                f"{type(module).__name__}, which has {len(found) or 'none'}. Lower `layers`, or defend a module that has "
                "them in `__init__` or `configure_model`."
            )
        return found[: self.layers]

    # --- the run -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warm the dictionaries up where the run begins; the training pictures are known from here on."""
        layers = list(_sparse_layers(pl_module).values())
        if self.warm_up_epochs and not self._warmed_up and trainer.global_step == 0:
            warm_up(
                pl_module,
                layers,
                training_records(trainer),
                epochs=self.warm_up_epochs,
                batch_size=self.warm_up_batch_size,
                seed=self.seed,
            )
        self._warmed_up = True
        for layer in layers:
            layer.measure = True

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Let the dictionaries learn, and log."""
        layers = _sparse_layers(module)
        for layer in layers.values():
            if layer.rule == "hebbian":
                layer.update_dictionary()
        measured = {name: layer.measures for name, layer in layers.items() if layer.measures is not None}
        if measured:
            means = mean_over_ranks(torch.stack([torch.stack(m) for m in measured.values()])).unbind()
            values = {
                f"defence/{self.name}/{what}/{name}": value
                for name, row in zip(measured, means, strict=True)
                for what, value in zip(("energy", "active", "residual"), row, strict=True)
            }
            module.log_dict(values, on_step=True, on_epoch=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop measuring."""
        for layer in _sparse_layers(pl_module).values():
            layer.measure, layer.measures = False, None

    def state_dict(self) -> dict[str, Any]:
        """Return whether the dictionaries have been warmed up; they themselves are the module's."""
        return {"warmed_up": self._warmed_up}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._warmed_up = bool(state_dict["warmed_up"])


def _sparse_layers(module: nn.Module) -> dict[str, SparseCode2d]:
    return {name: part for name, part in module.named_modules() if isinstance(part, SparseCode2d)}
