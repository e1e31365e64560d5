r"""Robbing the Fed: a server that sends a layer of its own reads single records off its gradient.

The layer measures every picture's brightness, :math:`s(x) = w^T x`, with rows that differ only in their bias: unit i is
active where :math:`s(x) > c_i` for rising cut-offs. The gradients of neighbouring units differ by the records of one bin, and
where a bin holds one record the quotient of the differences is that record.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["Imprint", "ImprintedNetwork", "brightness_cuts"]


def brightness_cuts(pictures: Float[Tensor, "n channels height width"], bins: int) -> Float[Tensor, " bins"]:
    """Return cut-offs between which pictures of the server's own fall equally often.

    Args:
        pictures: The server's pictures, in [0, 1].
        bins: How many bins; each is open above but the last one counts all that is brighter.

    Example:
        >>> brightness_cuts(torch.linspace(0, 1, 101).reshape(-1, 1, 1, 1), 4).tolist()
        [-1.0, 0.25, 0.5, 0.75]
    """
    means = pictures.flatten(1).mean(1)
    cuts = means.quantile(torch.linspace(0, 1, bins + 1)[:-1].to(means))
    cuts[0] = -1.0  # no picture is darker than black
    return cuts


class ImprintedNetwork(nn.Module):
    """A network behind the server's layer: pictures -> bins -> pictures -> network.

    Pictures pass on through a second linear layer that is the same for every bin, so that each active unit gets the same
    gradient of a record; it adds the sum of all bins, a small shift in brightness, to the picture.

    Args:
        network: The network that the server pretends to train.
        image_shape: Channels, height and width of the pictures.
        cuts: Cut-offs of the mean brightness, ascending.
        leak: Weight of the bins in the picture that passes on; any number but zero.

    Source:
        Fowl, Geiping, Czaja, Goldblum and Goldstein, arXiv 2110.13057, section 4.
    """

    def __init__(
        self,
        network: nn.Module,
        image_shape: tuple[int, int, int],
        cuts: Float[Tensor, " bins"],
        leak: float | int = 1e-2,
    ) -> None:
        super().__init__()
        if not bool((cuts.diff() > 0).all()):
            raise InputError(
                "Cut-offs of an imprint layer must rise strictly; give the server more, or more varied, pictures."
            )
        pixels = int(torch.tensor(image_shape).prod())
        self.imprint, self.passing = nn.Linear(pixels, len(cuts)), nn.Linear(len(cuts), pixels)
        with torch.no_grad():
            self.imprint.weight.fill_(1 / pixels)
            self.imprint.bias.copy_(-cuts)
            self.passing.weight.fill_(leak / len(cuts))
            self.passing.bias.zero_()
        self.network = network

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return the network's class scores."""
        bins = torch.relu(self.imprint(images.flatten(1)))
        return self.network(images + self.passing(bins).reshape(images.shape))


@dataclass(frozen=True)
class Imprint:
    """Reads the records of a batch off the imprint layer's gradient, one a bin; nothing is searched.

    The client has to train an `ImprintedNetwork`: a malicious server, against which no defence inside the network helps.

    Args:
        layer: Name of the imprint layer in the network.
        floor: Share of the largest difference of two neighbouring bias gradients below which a bin is empty.
    """

    name: ClassVar[str] = "imprint"
    access: ClassVar[str] = "malicious server that sends its own layer"
    estimates_secrets: ClassVar[bool] = True

    layer: str = "imprint"
    floor: float | int = 1e-6  # chosen here: above rounding, below any record's gradient

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return one picture a filled bin, grey ones for records that share a bin; see `LeakageAttack`.

        A bin of several records gives their mixture, which cannot be told from a record.

        Raises:
            InputError: The imprint layer was not shared.
        """
        gradient = update.mean_gradient()
        weight, bias = gradient.get(f"{self.layer}.weight"), gradient.get(f"{self.layer}.bias")
        if weight is None or bias is None:
            raise InputError(
                f"The imprint layer `{self.layer}` was not shared; let the client train an ImprintedNetwork."
            )
        # A unit is active for every brighter record, so that its neighbour's gradient holds all but this bin's.
        rows = -torch.cat([weight, torch.zeros_like(weight[:1])]).diff(dim=0)
        slopes = -torch.cat([bias, torch.zeros_like(bias[:1])]).diff(dim=0)
        filled = slopes.abs() > self.floor * slopes.abs().max()
        found = (rows[filled] / slopes[filled][:, None])[: update.n_records]
        pictures = torch.full((update.n_records, *target.image_shape), 0.5).to(found)
        pictures[: len(found)] = found.reshape(-1, *target.image_shape)
        complete = len(found) == update.n_records
        note = "" if complete else f"{len(found)} filled bins for {update.n_records} records: some share one"
        labels = torch.full((update.n_records,), -1)
        return Recovered(
            pictures.clamp(0, 1).float().cpu(), labels, 0.0 if complete else float("inf"), complete, note=note
        )
