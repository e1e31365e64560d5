"""A convolution's place taken by a sparse code: the layer, and what of a convolution it can replace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.callbacks.sparse_coding import functional as math
from lightning_privacy.callbacks.sparse_coding.dictionary import (
    HebbianSums,
    hebbian_step,
    hebbian_sums,
    largest_eigenvalue,
    normalise_atoms,
    random_atoms,
)
from lightning_privacy.callbacks.sparse_coding.functional import Form, Geometry, Transfer
from lightning_privacy.callbacks.sparse_coding.implicit import with_implicit_gradient
from lightning_privacy.callbacks.sparse_coding.solvers import (
    Solver,
    SolverSettings,
    automatic_tau,
    check_tau,
    solve,
    solve_checkpointed,
)
from lightning_privacy.core.ranks import mean_over_ranks, world_size
from lightning_privacy.errors import InputError

__all__ = ["Backward", "CodeMeasures", "DictionaryRule", "SparseCode2d"]

DictionaryRule = Literal["fixed", "hebbian", "gradient"]
Backward = Literal["implicit", "checkpoint", "unroll"]


class CodeMeasures(NamedTuple):
    """Means over the pictures of the last measured forward pass.

    Args:
        energy: ``1/2 ||s - a * Phi||^2 + lambda ||a||_1``.
        active: Share of the code that is not zero.
        residual: ``||s - a * Phi|| / ||s||``.
    """

    energy: Tensor
    active: Tensor
    residual: Tensor


class SparseCode2d(nn.Module):
    """The sparse code of its input over a dictionary of small atoms, in place of a convolution.

    The code minimises ``1/2 ||s - a * Phi||^2 + lam ||a||_1`` for the standardised input s, by a fixed number of
    iterations in single precision (double for double inputs), whatever the autocast. Atoms have unit norm whenever they
    are used. There is no bias. The output has the size that a convolution's would have; with a stride the code lies on
    the coarser grid and the synthesis is a transposed convolution of that stride.

    Args:
        in_channels: Channels of the input.
        out_channels: Atoms, which is channels of the code.
        kernel_size: Rows and columns of an atom, one number for both.
        stride: Steps between places.
        padding: Zeros around the input; ``same`` is half the kernel, which must then be odd.
        lam: lambda, at least 0: the larger, the fewer units are active.
        solver: ``fista`` or ``lca``.
        tau: Time constant, whose inverse is the step; None takes the safe one for the dictionary.
        iters: Iterations, at least 1.
        form: ``residual``, the exact objective, or ``lateral``, with competition between atoms as published, which treats
            borders differently (see `lateral_gram`) and costs more.
        nonneg: Whether codes may not be negative.
        transfer: ``soft`` threshold, or ``hard`` (for ``lca``).
        standardize: Give every input mean 0 and variance 1 first.
        dictionary: ``fixed``, learned by the local rule (``hebbian``; call `update_dictionary` after each step) or by
            the optimizer (``gradient``: a parameter, normalised inside the forward pass).
        eta: Rate of the local rule, at least 0.
        clip: Largest change of an entry of the dictionary in one step of the local rule.
        backward: How gradients reach the input: ``implicit`` (at the solution; keeps nothing), ``checkpoint`` (through
            the iterations, most of them computed twice) or ``unroll`` (through the iterations, all kept).
        backward_iters: Conjugate-gradient iterations of ``implicit``, at most.
        damping: Of ``implicit``, as a share of L: directions to which the code is hardly determined, which few iterations
            do not resolve, are not followed back. 0 is exact where the solver has converged, and noise where it has not.

    Raises:
        InputError: an argument is out of range, or two contradict each other.

    Example:
        >>> layer = SparseCode2d(3, 16, lam=0.5)
        >>> code = layer(torch.rand(2, 3, 32, 32))
        >>> code.shape, bool((code >= 0).all()), bool((code == 0).float().mean() > 0.5)
        (torch.Size([2, 16, 32, 32]), True, True)

    Source:
        Dibbo et al., ECCV 2024, arXiv 2403.14772; LCA: Rozell et al., Neural Computation 20, 2008.
    """

    weight: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 5,  # arXiv 2403.14772's released code
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Literal["same"] = "same",
        *,
        lam: float | int = 0.5,  # released code, most sets
        solver: Solver = "fista",
        tau: float | int | None = None,
        iters: int = 16,  # chosen here: reaches below the objective of the released 500 of LCA
        form: Form = "residual",
        nonneg: bool = True,
        transfer: Transfer = "soft",
        standardize: bool = True,
        dictionary: DictionaryRule = "fixed",
        eta: float | int = 0.01,  # lcapt's example of dictionary learning on CIFAR-10
        clip: float | int = float("inf"),
        backward: Backward = "implicit",
        backward_iters: int = 10,  # chosen here: with this damping, further ones change nothing
        damping: float
        | int = 1e-2,  # chosen here: nearest to the exact gradient after 20 iterations or so, lambda .1 to 1.5
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair("kernel_size", kernel_size, 1), _pair("stride", stride, 1)
        self.padding = _same(self.kernel_size) if isinstance(padding, str) else _pair("padding", padding, 0)
        self.lam, self.tau, self.iters, self.nonneg = float(lam), tau, iters, nonneg
        self.solver: Solver = solver
        self.form: Form = form
        self.transfer: Transfer = transfer
        self.standardize, self.eta, self.clip = standardize, float(eta), float(clip)
        self.rule: DictionaryRule = dictionary
        self.backward: Backward = backward
        self.backward_iters, self.damping = backward_iters, float(damping)
        self._check()
        first = random_atoms(out_channels, in_channels, self.kernel_size)
        if dictionary == "gradient":
            self.weight = nn.Parameter(first)
        else:
            self.register_buffer("weight", first)
        self.measure = False
        """Whether forward passes in training mode fill `measures`."""
        self.learn = dictionary == "hebbian"
        """Whether forward passes in training mode gather what `update_dictionary` needs."""
        self.measures: CodeMeasures | None = None
        self.sums: HebbianSums | None = None
        self.origin = ""
        """Name of the convolution whose place it took."""
        self._surrogate = False
        self._largest: tuple[Tensor, float] | None = None

    def _check(self) -> None:
        for name, value, least in (
            ("in_channels", self.in_channels, 1),
            ("out_channels", self.out_channels, 1),
            ("lam", self.lam, 0),
            ("iters", self.iters, 1),
            ("eta", self.eta, 0),
            ("clip", self.clip, 0),
            ("backward_iters", self.backward_iters, 1),
            ("damping", self.damping, 0),
        ):
            if not value >= least or (name == "lam" and value == float("inf")):
                raise InputError(f"SparseCode2d: `{name}` is {value}; it must be a number, at least {least}.")
        if self.tau is not None and not 0 < self.tau < float("inf"):
            raise InputError(f"SparseCode2d: `tau` is {self.tau}; it must be a finite number above 0, or null.")
        if self.solver == "fista" and self.transfer == "hard":
            raise InputError(
                "SparseCode2d: FISTA needs a convex penalty, which `transfer: hard` has not; use `solver: lca` with it."
            )

    # --- the code ----------------------------------------------------------------------------------------------

    @property
    def geometry(self) -> Geometry:
        """Where atoms may lie."""
        return Geometry(self.stride, self.padding)

    def atoms(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "atoms channels kernel_rows kernel_columns"]:
        """Return Phi, of unit norm, with its graph where it is trained by gradients.

        Args:
            dtype: Single or double precision.
        """
        return normalise_atoms(self.weight.to(dtype))

    @property
    def dictionary(self) -> Float[Tensor, "atoms channels kernel_rows kernel_columns"]:
        """Phi without its graph: what an attacker who knows the defence knows."""
        return self.atoms().detach()

    def largest_eigenvalue(self) -> float:
        """Return L of the present dictionary; it is measured again when that has changed."""
        # By content: weight averaging and loading change weights in ways that a version counter does not see.
        seen = self._largest
        if seen is None or seen[0].device != self.weight.device or not torch.equal(seen[0], self.weight):
            found = float(largest_eigenvalue(self.atoms().detach(), self.stride))
            self._largest = seen = (self.weight.detach().clone(), found)
        return seen[1]

    def settings(self) -> SolverSettings:
        """Return how the code is computed with the present dictionary.

        Raises:
            InputError: with the given ``tau`` the solver diverges.
        """
        largest = self.largest_eigenvalue()
        if self.tau is None:
            tau = automatic_tau(largest, self.solver)
        else:
            tau = float(self.tau)
            check_tau(tau, largest, self.solver)
        return SolverSettings(self.lam, tau, self.solver, self.iters, self.form, self.nonneg, self.transfer)

    def signal(self, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
        """Return s: the input in the solver's precision, standardised where the layer does that.

        Args:
            x: Input.
        """
        exact = x if x.dtype == torch.float64 else x.float()
        return math.standardise(exact) if self.standardize else exact

    def encode(
        self,
        signal: Float[Tensor, "batch channels rows columns"],
        start: Float[Tensor, "batch atoms places_down places_across"] | None = None,
    ) -> Float[Tensor, "batch atoms places_down places_across"]:
        """Return the code of a signal that `signal` has prepared.

        Args:
            signal: s.
            start: A code to start from instead of 0.
        """
        atoms, settings = self.atoms(signal.dtype), self.settings()
        wanted = torch.is_grad_enabled() and (signal.requires_grad or atoms.requires_grad)
        if wanted and self._surrogate:
            with torch.no_grad():
                code = solve(signal, atoms, self.geometry, settings, start).contiguous()
            smooth = F.softplus(math.analysis(signal, atoms, self.geometry) - self.lam) / self.largest_eigenvalue()
            return code + (smooth - smooth.detach())
        if wanted and self.backward != "implicit":
            run = solve if self.backward == "unroll" else solve_checkpointed
            return run(signal, atoms, self.geometry, settings, start)
        with torch.no_grad():
            code = solve(signal, atoms, self.geometry, settings, start).contiguous()
        if not wanted:
            return code
        damping = self.damping * self.largest_eigenvalue()
        return with_implicit_gradient(code, signal, atoms, self.geometry, self.form, self.backward_iters, damping)

    def decode(
        self, code: Float[Tensor, "batch atoms places_down places_across"], size: tuple[int, int]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the reconstruction ``a * Phi`` of the standardised input.

        Args:
            code: a.
            size: Rows and columns of the input.
        """
        return math.synthesis(code, self.atoms(code.dtype), size, self.geometry)

    def synthesise(
        self, code: Float[Tensor, "batch atoms places_down places_across"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Return the reconstruction of an input whose sides are the code's times the stride.

        Args:
            code: a.
        """
        return self.decode(code, (code.shape[2] * self.stride[0], code.shape[3] * self.stride[1]))

    @contextmanager
    def surrogate(self) -> Iterator[None]:
        """Let inactive units pass gradients while the context lasts: for attackers, to whom a threshold is no wall.

        Codes stay as they are; their gradient is that of ``softplus(D^T s - lam) / L``, the first step of the solver with a
        smooth threshold (backward pass differentiable approximation, arXiv 1802.00420).
        """
        self._surrogate = True
        try:
            yield
        finally:
            self._surrogate = False

    def forward(self, x: Float[Tensor, "*batch channels rows columns"]) -> Float[Tensor, "*batch atoms down across"]:
        """Return the code of each picture, in the input's precision.

        Args:
            x: Pictures, or one picture.

        Raises:
            InputError: the input has other channels, or is smaller than an atom.
        """
        if x.ndim == 3:
            return self(x[None])[0]
        self._check_input(x)
        with torch.autocast(x.device.type, enabled=False):
            signal = self.signal(x)
            code = self.encode(signal)
            if self.training and (self.measure or self.learn):
                self._observe(code.detach(), signal.detach())
        return code.to(x.dtype)

    def _check_input(self, x: Tensor) -> None:
        short = [n + 2 * p < k for n, p, k in zip(x.shape[2:], self.padding, self.kernel_size, strict=True)]
        if x.shape[1] != self.in_channels or any(short) or not x.is_floating_point():
            raise InputError(
                f"SparseCode2d got an input of shape {tuple(x.shape)} and type {x.dtype}; it takes floats in "
                f"{self.in_channels} channels, at least as large as its atoms of {self.kernel_size}."
            )

    # --- what it tells and learns ------------------------------------------------------------------------------

    @torch.no_grad()
    def _observe(self, code: Tensor, signal: Tensor) -> None:
        atoms = self.atoms(signal.dtype)
        if self.measure:
            self.measures = CodeMeasures(
                math.energy(code, signal, atoms, self.lam, self.geometry).mean(),
                math.active_fraction(code).mean(),
                math.relative_residual(code, signal, atoms, self.geometry).mean(),
            )
        if self.learn:
            new = hebbian_sums(code, signal, atoms, self.geometry)
            old = self.sums
            self.sums = new if old is None else HebbianSums(*(a + b for a, b in zip(old, new, strict=True)))

    @torch.no_grad()
    def update_dictionary(self) -> None:
        """Take one step of the local rule with what the forward passes since the last one gathered, over all ranks.

        Nothing happens where none was gathered; all ranks must call it.
        """
        sums, self.sums = self.sums, None
        if world_size() > 1:
            like = self.weight.float()
            own = sums or HebbianSums(torch.zeros_like(like), like.new_zeros(self.out_channels))
            # One message a layer; sums, because ranks may hold different numbers of pictures.
            flat = mean_over_ranks(torch.cat([own.correlation.flatten(), own.activations])) * world_size()
            sums = HebbianSums(flat[: like.numel()].view_as(like), flat[like.numel() :])
        if sums is not None:
            self.weight.copy_(hebbian_step(self.atoms(sums.correlation.dtype), sums, self.eta, self.clip))

    def extra_repr(self) -> str:
        """Return the settings for printing."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, lam={self.lam:g}, solver={self.solver}, iters={self.iters}, form={self.form}, "
            f"dictionary={self.rule}"
        )

    @classmethod
    def from_conv(
        cls, conv: nn.Module, name: str = "the layer", kernel_size: int | None = None, **how: Any
    ) -> "SparseCode2d":
        """Return the layer that takes a convolution's place: same channels, stride and output size.

        Args:
            conv: A plain ``nn.Conv2d``; its weights and bias are not used.
            name: Its name, for errors.
            kernel_size: Side of the atoms; None for the convolution's. The padding is changed with it so that the
                output keeps its size.
            **how: Further arguments of the layer.

        Raises:
            InputError: the convolution has groups, dilation, padding with other values than zero, or a class of its own.

        Example:
            >>> SparseCode2d.from_conv(nn.Conv2d(3, 8, 3, stride=2, padding=1), kernel_size=5).padding
            (2, 2)
        """
        if type(conv) is not nn.Conv2d:
            raise InputError(
                f"Sparse coding cannot replace {name}: it is a {type(conv).__name__}, whose forward pass need not be that of "
                "a plain nn.Conv2d. Choose other convolutions by `names`."
            )
        odd = {
            "groups": (conv.groups, 1),
            "dilation": (conv.dilation, (1, 1)),
            "padding_mode": (conv.padding_mode, "zeros"),
        }
        wrong = [f"{what}={value}" for what, (value, plain) in odd.items() if value != plain]
        if wrong:
            raise InputError(
                f"Sparse coding cannot replace {name}, which has {', '.join(wrong)}: its atoms span all channels, without "
                "gaps, over zero padding. Choose other convolutions by `names`."
            )
        old = (int(conv.kernel_size[0]), int(conv.kernel_size[1]))
        if isinstance(conv.padding, str):
            padding = _same(old, name) if conv.padding == "same" else (0, 0)
        else:
            padding = (int(conv.padding[0]), int(conv.padding[1]))
        new = old if kernel_size is None else (kernel_size, kernel_size)
        if kernel_size is not None:
            grown = [b - a for a, b in zip(old, new, strict=True)]
            padding = (padding[0] + grown[0] // 2, padding[1] + grown[1] // 2)
            if any(g % 2 for g in grown) or min(padding) < 0:
                raise InputError(
                    f"Sparse coding cannot give {name} atoms of {kernel_size} pixels in place of its kernel of {old}: the "
                    "output would change its size. Leave `kernel_size` null."
                )
        stride = (int(conv.stride[0]), int(conv.stride[1]))
        return cls(conv.in_channels, conv.out_channels, new, stride, padding, **how)


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else (value[0], value[1])
    if min(pair) < least:
        raise InputError(f"SparseCode2d: `{name}` is {value}; it must be at least {least}.")
    return pair


def _same(kernel: tuple[int, int], name: str = "SparseCode2d") -> tuple[int, int]:
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise InputError(
            f"{name}: `padding: same` needs an odd kernel, and this one is {kernel}; take an odd one, or give the padding "
            "as a number."
        )
    return kernel[0] // 2, kernel[1] // 2
