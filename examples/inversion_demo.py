"""Train a face classifier undefended, with sparse coding, with noise and with a control, and reconstruct what leaves each.

    make inversion-demo

Each run is an ordinary command line, which is printed. Every model faces the same attackers, which know its defence: a
trained decoder, and a white-box search from its output. One seed: intervals are over victims.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from side_by_side import fit_all

from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder, read_metrics
from lightning_privacy.metrics.functional.reconstruction import leak_share, victim_interval
from lightning_privacy.report.tables import number

OUT = Path("runs/inversion-demo")
NONE = ["--defences.sparse_coding", "null"]
CONTROL = "lightning_privacy.callbacks.inversion_controls.callback.StandardizeOnly"
# Attackers as strong as the demo's time allows; benchmarks/inversion_faces.py gives them more.
BUDGET = [
    *("--audits.inversion.victims", "10", "--audits.inversion.ceiling", "false"),
    *("--audits.inversion.attack_args", "{trained_decoder: {max_steps: 1000, width: 32}, optimisation_from_decoder: "
      "{steps: 20, tuning: 4, variation: [0.01], stay: [0.1, 1]}, surrogate_from_decoder: {steps: 20, tuning: 4}}"),
    *("--trainer.max_epochs", "14", "--model.init_args.lr_scheduler.init_args.total_steps", "281"),
]  # fmt: skip
RUNS = {
    "sparse-released": [],
    "sparse-learned": ["--config", "configs/defences/sparse_coding_learned.yaml"],
    "undefended": NONE,
    "noise": [*NONE, "--config", "configs/defences/noise_tap.yaml"],
    "standardised": [*NONE, "--trainer.callbacks+", CONTROL],
}
MEANING = {
    "undefended": "no defence",
    "sparse-released": "sparse coding, random dictionaries and lambda as released, a faster solver",
    "sparse-learned": "sparse coding, dictionaries learned from the training pictures",
    "noise": "Gaussian noise on what leaves the client, in training and at inference",
    "standardised": "control: each picture standardised, as sparse coding does, and nothing else",
}


def strongest(run: RunFolder, tap: str) -> AttackResult:
    """Return the result of the strongest attack on held-out victims at a tap."""
    return next(r for r in run.results() if r.attack == f"{tap}/heldout/strongest_per_victim")


def leak(result: AttackResult, undefended: AttackResult) -> str:
    """Return where the PSNR stands between the class's mean picture (0) and the undefended split (1), over victims."""
    found, best = (torch.tensor(r.extra["per_victim"]["psnr"]) for r in (result, undefended))
    floor = torch.full_like(found, result.extra["floor_psnr"])
    share = leak_share(found, floor, best)
    low, high = victim_interval([found, floor, best], lambda f, b, c: (f.mean(1) - b.mean(1)) / (c.mean(1) - b.mean(1)))
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"


def accuracy(run: RunFolder) -> str:
    """Return the last validation accuracy."""
    found = [row["val/accuracy"] for row in read_metrics(run.metrics) if row.get("val/accuracy")]
    return f"{100 * float(found[-1]):.1f} %" if found else "-"


def table(runs: dict[str, RunFolder]) -> None:
    """Print one row a model and tap."""
    print(
        f"\n{'model':16} {'val acc.':8} {'tap':7} {'PSNR in dB':24} {'SSIM':22} {'retrieved':22} leak, undefended split = 1"
    )
    base = strongest(runs["undefended"], "split")
    for tap in ("split", "logits"):
        for name in MEANING:
            r = strongest(runs[name], tap)
            cells = [number(r.metrics[m], 1 if m == "psnr" else 2) for m in ("psnr", "ssim", "retrieval")]
            shown = accuracy(runs[name])
            print(f"{name:16} {shown:8} {tap:7} {cells[0]:24} {cells[1]:22} {cells[2]:22} {leak(r, base)}")
    floor = next(r for r in runs["undefended"].results() if r.attack == "heldout/class_mean").metrics
    print(f"{'class mean':16} {'':8} {'none':7} {number(floor['psnr'], 1):24} {number(floor['ssim'], 2):22}")


def grid(runs: dict[str, RunFolder]) -> Path:
    """Put the models' sheets of held-out faces below each other: the faces once, then the split and the scores of each."""
    sheets = []
    for number_of, name in enumerate(MEANING):
        sheet = torch.from_numpy(np.array(Image.open(next(runs[name].pictures.glob("*heldout*.png"))))).permute(2, 0, 1)
        face = sheet.shape[1] // 3
        sheets.append(F.pad(sheet if number_of == 0 else sheet[:, face:], (0, 0, 0, 8), value=255))
    path = OUT / "reconstructions.png"
    Image.fromarray(torch.cat(sheets, dim=1).permute(1, 2, 0).contiguous().numpy()).save(path)
    return path


def main() -> int:
    """Run everything and print what it means."""
    start = time.perf_counter()
    recipe = ["--config", "recipes/sca_faces_split.yaml"]
    if not fit_all({name: [*recipe, *own, *BUDGET] for name, own in RUNS.items()}, OUT):
        return 1
    runs = {name: RunFolder.open(OUT / name) for name in RUNS}
    table(runs)
    print()
    for name, meaning in MEANING.items():
        print(f"{name:16} {meaning}")
    notes = {
        f"{name}: {note}" for name in RUNS for tap in ("split", "logits") for note in strongest(runs[name], tap).notes
    }
    print("\n".join(["", *sorted(notes)]))
    base = strongest(runs["undefended"], "split").metrics
    visible = base["ssim"].value >= 0.6 or base["retrieval"].value >= 0.8
    if not visible:
        print("The undefended split is not reconstructed: this run proves nothing about any defence.")
    print(
        f"\nVictims are faces that neither model nor attacker has seen. {grid(runs)} shows the faces, then for each model, in "
        f"the table's order, what was made of the split and of the scores.\n{time.perf_counter() - start:.0f} s in all."
    )
    sys.stdout.flush()
    return 0 if visible else 1


if __name__ == "__main__":
    raise SystemExit(main())
