"""The evaluation attack of MP-LoRA and SMP-LoRA: a fresh network on flattened error maps."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.membership.observed import observed
from lightning_privacy.core.randomness import derive_seed, seeded_generator
from lightning_privacy.core.results import Signals

__all__ = ["HPrime"]

SMALLEST_GAIN = 1e-4  # nats of validation loss that count as still falling

ErrorMaps = Float[Tensor, "records draws features"]


class HPrime:
    """Trains a fresh network h' to tell members' error maps from non-members', one random draw at a time.

    Network, loss and balanced batches are those of the paper. Deviations: maps are pooled to at most 8 x 8 and
    standardised, the network is trained until the loss of an inner validation part of the attacker's own records is
    flat (the paper picks the best of 100 epochs on the evaluation records), and a record's score is the log-odds
    averaged over all its draws (the paper uses one draw), all of which strengthen or honestly measure the attack.

    Args:
        hidden: Widths of the two hidden layers.
        dropout: Rate after each hidden layer.
        learning_rate: Of Adam.
        weight_decay: Of Adam.
        batch_size: Error maps a step, half of them members.
        patience: Epochs without a lower validation loss after which training stops.
        max_epochs: Where training stops although the loss still falls; the fit then counts as not converged.
        validation_share: Share of the attacker's records, in each class, that is kept for the stopping rule.

    Source:
        arXiv 2402.11989, section 4 and appendix E.
    """

    name = "h_prime"
    requires = frozenset({"error_map"})
    access = "model weights (error maps)"
    learns = True
    folds = 3
    """A network is fitted anew in every fold of its cross-validation: fewer than the usual five."""

    def __init__(
        self,
        hidden: tuple[int, int] = (512, 256),  # arXiv 2402.11989, appendix E
        dropout: float = 0.5,  # the authors' released network; the paper does not mention it
        learning_rate: float = 1e-3,  # the paper's 1e-5 needs thousands of epochs on tens of records
        weight_decay: float = 1e-4,  # released code
        batch_size: int = 256,
        patience: int = 8,
        max_epochs: int = 300,
        validation_share: float = 0.25,
    ) -> None:
        self.hidden, self.dropout = hidden, dropout
        self.learning_rate, self.weight_decay, self.batch_size = learning_rate, weight_decay, batch_size
        self.patience, self.max_epochs, self.validation_share = patience, max_epochs, validation_share
        self.network: nn.Sequential | None = None
        self.mean = self.scale = torch.empty(0)

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Train h' to the plateau of its validation loss; return whether it got there.

        Args:
            members: Signals of records known to be members, at least two.
            nonmembers: Signals of records known not to be, at least two.
            seed: Decides initialisation, dropout, batches and the inner validation part.
        """
        # The audit may run without gradients or in inference mode. Initialisation and dropout read the global CPU
        # stream: fork it, and seed that stream alone (torch.manual_seed would reach the accelerators' as well).
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.default_generator.manual_seed(derive_seed(seed, "h_prime", "network"))
            generator = seeded_generator(seed, "h_prime", "batches")
            maps = [observed(x, "error_map", self.name).detach().float().clone() for x in (members, nonmembers)]
            (train_m, held_m), (train_n, held_n) = (self._split(x, generator) for x in maps)
            pool = torch.cat([train_m.flatten(0, 1), train_n.flatten(0, 1)])
            self.mean, self.scale = pool.mean(0), pool.std(0).clamp_min(1e-6)
            self.network = self._build(pool.shape[1])
            train = [self._standardise(x).flatten(0, 1) for x in (train_m, train_n)]
            held = [self._standardise(x).flatten(0, 1) for x in (held_m, held_n)]
            return self._train(self.network, train, held, generator)

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the log-odds of membership, averaged over the draws.

        Raises:
            RuntimeError: `fit` was not called.
        """
        if self.network is None:
            raise RuntimeError("h_prime.score was called before h_prime.fit; fit it on records of known membership.")
        with torch.no_grad():
            logits = self.network.eval()(self._standardise(observed(signals, "error_map", self.name).float()))
        return (logits[..., 1] - logits[..., 0]).double().mean(1)

    def _build(self, features: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width in self.hidden:
            layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(self.dropout)]
            features = width
        return nn.Sequential(*layers, nn.Linear(features, 2))

    def _split(
        self, maps: ErrorMaps, generator: torch.Generator
    ) -> tuple[Float[Tensor, "kept draws features"], Float[Tensor, "held draws features"]]:
        """Split by record: two draws of one record on both sides would hide over-fitting."""
        order = torch.randperm(len(maps), generator=generator)
        held = max(1, round(self.validation_share * len(maps)))
        return maps[order[held:]], maps[order[:held]]

    def _standardise(self, maps: ErrorMaps) -> ErrorMaps:
        return (maps - self.mean) / self.scale

    def _train(
        self, network: nn.Sequential, train: list[Tensor], held: list[Tensor], generator: torch.Generator
    ) -> bool:
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        half = max(1, min(self.batch_size // 2, *map(len, train)))
        labels = torch.tensor([1, 0]).repeat_interleave(half)
        steps = -(-max(len(x) for x in train) // half)
        best, best_epoch, best_state = _balanced_loss(network, held), 0, copy.deepcopy(network.state_dict())
        flat = False
        for epoch in range(1, self.max_epochs + 1):
            network.train()
            for _ in range(steps):
                picks = [x[torch.randint(len(x), (half,), generator=generator)] for x in train]
                optimizer.zero_grad()
                F.cross_entropy(network(torch.cat(picks)), labels).backward()
                optimizer.step()
            loss = _balanced_loss(network, held)
            if loss < best - SMALLEST_GAIN:
                best, best_epoch, best_state = loss, epoch, copy.deepcopy(network.state_dict())
            elif epoch - best_epoch >= self.patience:
                flat = True
                break
        network.load_state_dict(best_state)
        network.requires_grad_(False)
        return flat


@torch.no_grad()
def _balanced_loss(network: nn.Sequential, held: list[Tensor]) -> float:
    network.eval()
    losses = [
        float(F.cross_entropy(network(x), torch.full((len(x),), label))) for x, label in zip(held, (1, 0), strict=True)
    ]
    return sum(losses) / 2
