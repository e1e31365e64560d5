"""Time and objective of the presets `sca-fast` and `sca-released`, forward pass, on natural pictures.

    OMP_NUM_THREADS=1 python benchmarks/sparse_coding.py                    # CPU
    python benchmarks/sparse_coding.py --device cuda --batch 256            # GPU, also with torch.compile

Layer one codes standardised 32-pixel patches of scikit-learn's sample pictures (3 -> 16 channels, atoms of 5 by 5), layer
two the code of layer one after ReLU and batch normalisation (16 -> 32), both over random dictionaries, as in the released
network. Each round times one preset right after the other, so that whatever else the machine does hits both alike; the ratio
is taken within a round. The objective is that of the LASSO, 1/2 ||s - a * Phi||^2 + lambda ||a||_1, a picture. One CPU thread
is timed by the process's own clock. Printed as one JSON object.
"""

import argparse
import json
import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

from lightning_privacy.callbacks.sparse_coding.functional import energy, kkt_residual
from lightning_privacy.callbacks.sparse_coding.layers import SparseCode2d
from lightning_privacy.callbacks.sparse_coding.operators import Operators
from lightning_privacy.callbacks.sparse_coding.presets import preset
from lightning_privacy.core.randomness import seeded_generator

SIDE, KERNEL = 32, 5
CHANNELS = {"3->16": (3, 16), "16->32": (16, 32)}


def patches(n: int) -> torch.Tensor:
    """Cut patches of 32 pixels, in [0, 1], out of two photographs."""
    pictures = [torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 255 for p in load_sample_images().images]
    generator = seeded_generator(0, "patches")
    out = []
    for k in range(n):
        picture = pictures[k % len(pictures)]
        y, x = (int(torch.randint(0, side - SIDE, (1,), generator=generator)) for side in picture.shape[1:])
        out.append(picture[:, y : y + SIDE, x : x + SIDE])
    return torch.stack(out)


def build(name: str, lam: float, channels: tuple[int, int], device: str, **changes) -> SparseCode2d:
    how = {k: v for k, v in preset(name, lam=lam, **changes).items() if k not in ("layers", "kernel_size")}
    layer = SparseCode2d(*channels, kernel_size=KERNEL, **how).to(device)
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=seeded_generator(0, "atoms", *channels)))
    return layer.eval()


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(call, device: str, repeats: int = 1) -> float:
    start = now(device)
    for _ in range(repeats):
        call()
    return (now(device) - start) / repeats


def quality(layer: SparseCode2d, x: torch.Tensor, code: torch.Tensor) -> dict[str, float]:
    s, phi = layer.signal(x), layer.atoms()
    drive = Operators(phi, (SIDE, SIDE), layer.geometry, "residual")
    g = drive.drive(s, drive.encode(s), code)
    return {
        "objective": energy(code, s, phi, layer.lam, layer.geometry).mean().item(),
        "kkt_residual_over_lambda": (kkt_residual(code, g, layer.lam).mean() / layer.lam).item(),
        "active": (code != 0).float().mean().item(),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def bytes_moved(layer: SparseCode2d, batch: int) -> int:
    """Count what an iteration of FISTA must at least read and write: codes y, a, drive, and the signal twice."""
    code, signal = batch * layer.out_channels * SIDE**2 * 4, batch * layer.in_channels * SIDE**2 * 4
    # Synthesis reads y; analysis writes the drive; the update reads y and the drive and writes a; momentum reads two, writes y.
    return 8 * code + 4 * signal


def measure(name: str, lam: float, x: torch.Tensor, args: argparse.Namespace) -> dict:
    channels = CHANNELS[name]
    fast, released = (build(p, lam, channels, args.device) for p in ("sca-fast", "sca-released"))
    inner = 20 if args.device == "cuda" else 5
    times: dict[str, list[float]] = {"fast": [], "released": [], "ratio": []}
    codes = {"fast": fast(x), "released": released(x)}  # also warms up
    fast(x)
    for _ in range(args.rounds):
        slow = seconds(lambda: released(x), args.device)
        quick = seconds(lambda: fast(x), args.device, inner)
        for key, value in (("fast", quick), ("released", slow), ("ratio", slow / quick)):
            times[key].append(value)
    best = build("sca-fast", lam, channels, args.device, iters=500)
    row = {
        "layer": name,
        "lambda": lam,
        "tau_fast": fast.settings().tau,
        "seconds": {k: spread(times[k]) for k in ("fast", "released")},
        "ratio": spread(times["ratio"]),
        "fast": quality(fast, x, codes["fast"]),
        "released": quality(released, x, codes["released"]),
        "optimum": quality(best, x, best(x))["objective"],
    }
    if args.device == "cuda":
        row["compiled"] = compiled(fast, x, args)
    return row


def compiled(layer: SparseCode2d, x: torch.Tensor, args: argparse.Namespace) -> dict:
    """Time the solver's iterations under torch.compile, and the share of the memory's bandwidth that they use."""
    from lightning_privacy.callbacks.sparse_coding.solvers import solve

    s, phi, how = layer.signal(x), layer.atoms(), layer.settings()
    run = torch.compile(solve, mode="max-autotune-no-cudagraphs")
    difference = (run(s, phi, layer.geometry, how) - solve(s, phi, layer.geometry, how)).abs().max().item()
    out = {}
    for label, call in (("eager", solve), ("compiled", run)):
        call(s, phi, layer.geometry, how)
        taken = [seconds(lambda c=call: c(s, phi, layer.geometry, how), "cuda", 20) for _ in range(args.rounds)]
        rate = how.iters * bytes_moved(layer, len(x)) / median(taken)
        out[label] = {"seconds": spread(taken), "bytes_a_second": rate, "of_peak": rate / (args.peak * 1e9)}
    return {**out, "largest_difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lams", type=float, nargs="+", default=[0.1, 0.5, 1.5])
    parser.add_argument("--peak", type=float, default=3350.0, help="memory bandwidth in GB/s (H100 SXM: 3350)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    rows = []
    with torch.no_grad():
        pictures = patches(args.batch).to(args.device)
        for lam in args.lams:
            first = build("sca-fast", lam, CHANNELS["3->16"], args.device, iters=200)
            inputs = {"3->16": pictures, "16->32": F.batch_norm(F.relu(first(pictures)), None, None, training=True)}
            rows += [measure(name, lam, inputs[name], args) for name in CHANNELS]
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(json.dumps({"device": where, "torch": torch.__version__, "batch": args.batch, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
