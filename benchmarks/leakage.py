"""What gradient leakage finds on the LeNet of the leakage papers, and how fast it searches.

    python benchmarks/leakage.py                          # undefended, and a norm with a secret scale and shift: the table
    python benchmarks/leakage.py --faces --victims 8      # faces of ORL in place of scikit-image's pictures
    python benchmarks/leakage.py --speed                  # evaluations a second of every attack, LeNet and a small ResNet
    python benchmarks/leakage.py --speed --device cuda

Victims are 32-pixel pictures, one record an update, labels inferred. ``locked_*`` is the network with batch normalisation
behind its first convolution, whose scale and shift a lock of 1024-long random keys makes and the client withholds: ``relu``
as in arXiv 2305.04095, ``softplus`` with centred keys around scale 1 and shift 0. ``affine`` is the same network with
nothing withheld and plain scale and shift: what batch normalisation alone hides. Each line is one JSON object.
"""

import argparse
import json
import math
import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lightning_privacy.attacks.leakage.client import share_update
from lightning_privacy.attacks.leakage.dlg import DeepLeakage
from lightning_privacy.attacks.leakage.generator import GeneratorNetwork
from lightning_privacy.attacks.leakage.inverting_gradients import InvertingGradients
from lightning_privacy.attacks.leakage.joint import JointOptimisation
from lightning_privacy.attacks.leakage.key_regression import KeyRegression
from lightning_privacy.attacks.leakage.known_lock import KnownLock
from lightning_privacy.attacks.leakage.partial import PartialMatching
from lightning_privacy.attacks.leakage.scoring import affine_aligned
from lightning_privacy.attacks.leakage.target import LockView, Secret, target_of
from lightning_privacy.attacks.leakage.wrong_key import WrongKey
from lightning_privacy.datamodules.orl import read_orl
from lightning_privacy.metrics.functional.reconstruction import paired_similarity
from lightning_privacy.modules.networks.cifar_resnet import CifarResNet18
from lightning_privacy.modules.networks.leakage_lenet import LeakageLeNet

SIDE, CLASSES, KEY, WIDTH = 32, 100, 1024, 12
SECRETS = ("norm1.weight", "norm1.bias")


def victims(count: int, faces: bool):
    """Pictures of 32 by 32 pixels and three channels."""
    if faces:
        arrays = [np.stack([read_orl(1 + i, 1)] * 3, -1) for i in range(count)]
    else:
        import skimage.data

        names = ("astronaut", "coffee", "chelsea", "rocket")
        arrays = [getattr(skimage.data, name)() for name in names[:count]]
    pictures = []
    for array in arrays:
        side = min(array.shape[:2])
        left, top = (array.shape[1] - side) // 2, (array.shape[0] - side) // 2
        image = Image.fromarray(array).crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.BICUBIC)
        pictures.append(torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255)
    return torch.stack(pictures)


def make_lock(kind: str, seed: int) -> LockView:
    """A lock of two linear layers with PyTorch's start, as a function of its key."""
    g = torch.Generator().manual_seed(seed)
    bound = KEY**-0.5
    weights = (2 * torch.rand(2, WIDTH, KEY, generator=g, dtype=torch.float64) - 1) * bound
    biases = (2 * torch.rand(2, WIDTH, generator=g, dtype=torch.float64) - 1) * bound

    def derive(key):
        scale, shift = weights.to(key) @ key + biases.to(key)
        if kind == "relu":
            return {SECRETS[0]: scale.relu(), SECRETS[1]: shift.relu()}
        return {SECRETS[0]: F.softplus(scale + math.log(math.e - 1)), SECRETS[1]: shift}

    def draw(g):
        uniform = torch.rand(KEY, generator=g, dtype=torch.float64)
        return uniform if kind == "relu" else (uniform > 0.5).double() * 2 - 1

    return LockView(derive, draw)


def case(kind: str, picture, index: int):
    """The attacker's view, the update and the true secrets of one victim."""
    torch.manual_seed(100 + index)
    net = LeakageLeNet(CLASSES, 3, SIDE, norm="none" if kind == "undefended" else "batch").double()
    label = torch.tensor([7 + index])
    if not kind.startswith("locked"):
        return target_of(net, (3, SIDE, SIDE), CLASSES), share_update(net, picture[None].double(), label), {}
    lock = make_lock(kind.removeprefix("locked_"), 500 + index)
    true = lock.derive(lock.draw_key(torch.Generator().manual_seed(900 + index)))
    with torch.no_grad():
        for name in SECRETS:
            net.get_parameter(name).copy_(true[name])
    hidden = {
        SECRETS[0]: Secret((WIDTH,), True, "conv1.weight"),
        SECRETS[1]: Secret((WIDTH,), kind == "locked_relu"),
    }
    draw = lambda g: lock.derive(lock.draw_key(g))  # noqa: E731
    target = target_of(net, (3, SIDE, SIDE), CLASSES, hidden, draw_secrets=draw, lock=lock)
    return target, share_update(net, picture[None].double(), label, withheld=SECRETS), true


def table(pictures, evaluations: int, restarts: int) -> None:
    """Print one line a network and attack."""
    search = DeepLeakage(evaluations=evaluations, restarts=restarts)
    signs = InvertingGradients(steps=2 * evaluations, restarts=restarts)
    plan = {
        "undefended": {"dlg": search, "inverting_gradients": signs},
        "affine": {"dlg": search},
    }
    for kind in ("locked_softplus", "locked_relu"):
        plan[kind] = {
            "wrong_key": WrongKey(search),
            "partial": PartialMatching(("conv2", "conv3", "head"), search),
            "key_regression": KeyRegression(search),
            "known_lock": KnownLock(search),
            "joint": JointOptimisation(search),
            "oracle": search,
        }
    for kind, attacks in plan.items():
        for name, attack in attacks.items():
            rows = []
            for index, picture in enumerate(pictures):
                target, update, true = case(kind, picture, index)
                known = target.with_secrets(true) if name == "oracle" else target
                began = time.process_time()
                found = attack.reconstruct(known, update, 0)
                seconds = time.process_time() - began
                truth = picture[None]
                raw = paired_similarity(found.pictures, truth)
                fitted = paired_similarity(affine_aligned(found.pictures, truth), truth)
                wrong = [
                    float((found.secrets[k].cpu() - true[k]).norm() / true[k].norm())
                    for k in SECRETS
                    if k in found.secrets
                ]
                rows.append(
                    {
                        "ssim": float(raw["ssim"]),
                        "psnr": float(raw["psnr"]),
                        "aligned_ssim": float(fitted["ssim"]),
                        "aligned_psnr": float(fitted["psnr"]),
                        "loss": found.matching_loss,
                        "secret_error": max(wrong) if wrong else math.nan,
                        "label": float(found.labels[0] == 7 + index),
                        "seconds": seconds,
                    }
                )
            summary = {key: float(f"{median(row[key] for row in rows):.3g}") for key in rows[0]}
            each = [round(row["aligned_ssim"], 3) for row in rows]
            print(json.dumps({"network": kind, "attack": name, **summary, "each": each}), flush=True)


def speed(device: str) -> None:
    """Print evaluations a second, all restarts counting, of every attack on two networks."""
    picture = torch.rand(1, 3, SIDE, SIDE, device=device)
    for label, net in (
        ("lenet", LeakageLeNet(CLASSES, 3, SIDE)),
        ("resnet18_width_8", CifarResNet18(CLASSES, 3, norm="group", width=8)),
    ):
        net = net.to(device)
        target = target_of(net, (3, SIDE, SIDE), CLASSES)
        update = share_update(net, picture, torch.tensor([7], device=device))
        for restarts in (1, 4, 16):
            for attack, steps in (
                (DeepLeakage(evaluations=12, restarts=restarts), 12),
                (InvertingGradients(steps=12, restarts=restarts), 13),
                (GeneratorNetwork(steps=12, restarts=restarts), 13),
            ):
                began = time.perf_counter() if device == "cuda" else time.process_time()
                attack.reconstruct(target, update, 0)
                spent = (time.perf_counter() if device == "cuda" else time.process_time()) - began
                line = {"network": label, "attack": attack.name, "restarts": restarts, "device": device}
                print(json.dumps({**line, "evaluations_per_second": round(steps * restarts / spent, 1)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", type=int, default=4)
    parser.add_argument("--faces", action="store_true")
    parser.add_argument("--evaluations", type=int, default=600)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.speed:
        speed(given.device)
    else:
        table(victims(given.victims, given.faces), given.evaluations, given.restarts)
