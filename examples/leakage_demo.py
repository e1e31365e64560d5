"""Train a federated client's face classifier with and without defences, and rebuild its faces from what it would share.

    make leakage-demo

Each run is an ordinary command line, which is printed. An update is the gradient of one training face, before the first
step and after training. Every attacker knows the defence; which attack is the strongest is decided by how well a
reconstruction explains the update. One seed: intervals are over victims.
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
from lightning_privacy.report.tables import number

OUT = Path("runs/leakage-demo")
NONE = ["--defences.key_lock", "null"]
STATES = ("initial", "trained")
# Attackers as strong as the demo's time allows; benchmarks/leakage_grid.py gives them more.
BUDGET = [
    *("--audits.leakage.victims", "8", "--audits.leakage.controls", "[known_secrets]"),
    *("--audits.leakage.attacks", "[label_inference, inverting_gradients, dlg, wrong_key, joint]"),
    *("--audits.leakage.attack_args", "{inverting_gradients: {steps: 200, restarts: 1}, dlg: {evaluations: 350, "
      "restarts: 1}}"),
]  # fmt: skip
RUNS = {
    "key-lock": ["--defences.key_lock.spread", "0.5"],
    "key-lock-paper": ["--config", "configs/defences/key_lock_paper.yaml"],
    "private-affine": [*NONE, "--config", "configs/defences/private_affine.yaml"],
    "undefended": NONE,
    "noise": [*NONE, "--config", "configs/defences/gradient_noise.yaml"],
}
MEANING = {
    "undefended": "no defence: scale and shift of the normalisation layer are shared",
    "private-affine": "scale and shift stay with the client, no key; the first update's are known to be 1 and 0",
    "key-lock-paper": "scale and shift from a key by a ReLU lock, as released",
    "key-lock": "scale and shift from a key by a softplus lock that starts at random (spread 0.5)",
    "noise": "Gaussian noise on the gradient, as large as each tensor's own spread",
}
ATTACKS = ("inverting_gradients", "dlg", "wrong_key", "joint")


def found(run: RunFolder, state: str, attack: str, condition: str = "") -> AttackResult | None:
    """Return one attack's result on single records, under the run's own condition if no control is named."""
    conditions = (condition,) if condition else ("defended", "undefended")
    names = {f"{state}/batch1/{each}/{attack}" for each in conditions}
    return next((r for r in run.results() if r.attack in names), None)


def cell(result: AttackResult | None, metric: str = "aligned_ssim") -> str:
    """Return a metric with its interval; of one search among several, its value alone."""
    return "-" if result is None else number(result.metrics[metric], 2)


def accuracy(run: RunFolder) -> str:
    """Return the last validation accuracy."""
    rows = [row["val/accuracy"] for row in read_metrics(run.metrics) if row.get("val/accuracy")]
    return f"{100 * float(rows[-1]):.1f} %" if rows else "-"


def table(runs: dict[str, RunFolder]) -> None:
    """Print one row a model and state: the strongest attack, then each attack's aligned SSIM."""
    print(
        f"\n{'model':15} {'val acc.':8} {'update':8} {'SSIM of the strongest':22} {'retrieved':20} {'label':5} "
        + " ".join(f"{name:>19}" for name in ATTACKS)
        + f" {'secrets known':>13}"
    )
    for state in STATES:
        for name in MEANING:
            run = runs[name]
            best = found(run, state, "strongest_per_victim")
            told = found(run, state, "strongest_per_victim", "known_secrets")
            labels = found(run, state, "label_inference")
            alone = [found(run, state, each) for each in ATTACKS]
            shown = ["-" if r is None else f"{r.metrics['aligned_ssim'].value:.2f}" for r in alone]
            print(
                f"{name:15} {accuracy(run):8} {state:8} {cell(best):22} {cell(best, 'retrieval'):20} "
                f"{'-' if labels is None else format(labels.metrics['label_accuracy'].value, '.2f'):5} "
                + " ".join(f"{each:>19}" for each in shown)
                + f" {'-' if told is None else format(told.metrics['aligned_ssim'].value, '.2f'):>13}"
            )
    floor = next(r for r in runs["undefended"].results() if r.attack.endswith("batch1/class_mean"))
    print(f"{'class mean':15} {'':8} {'none':8} {cell(floor):22} {cell(floor, 'retrieval'):20}")


def grid(runs: dict[str, RunFolder]) -> Path:
    """Put the models' sheets below each other: the faces once, then what the strongest attack made of each model."""
    sheets = []
    for state in STATES:
        for name in MEANING:
            path = sorted(runs[name].pictures.glob(f"leakage-{state}-batch1-*.png"))[-1]
            sheet = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
            made = [r.attack.split("/") for r in runs[name].results() if r.attack.startswith(f"{state}/batch1/")]
            side = sheet.shape[1] // (
                1 + len({condition for _, _, condition, _ in made})
            )  # the faces, a row a condition
            sheets.append(F.pad(sheet[:, 0 if not sheets else side : 2 * side], (0, 0, 0, 4), value=255))
    path = OUT / "reconstructions.png"
    Image.fromarray(torch.cat(sheets, dim=1).permute(1, 2, 0).contiguous().numpy()).save(path)
    return path


def main() -> int:
    """Run everything and print what it means."""
    start = time.perf_counter()
    recipe = ["--config", "recipes/fedkl_faces.yaml"]
    if not fit_all({name: [*recipe, *own, *BUDGET] for name, own in RUNS.items()}, OUT):
        return 1
    runs = {name: RunFolder.open(OUT / name) for name in RUNS}
    table(runs)
    print()
    for name, meaning in MEANING.items():
        print(f"{name:15} {meaning}")
    bests = {(name, state): found(runs[name], state, "strongest_per_victim") for name in MEANING for state in STATES}
    print(
        "\n".join(["", *sorted({f"{name}, {state}: {n}" for (name, state), r in bests.items() if r for n in r.notes})])
    )
    base = bests["undefended", "initial"]
    # What the audit itself calls visible; the searches of a demo are too short for more.
    visible = base is not None and (base.metrics["aligned_ssim"].value >= 0.6 or base.metrics["retrieval"].value >= 0.8)
    if not visible:
        print("The undefended update is not reconstructed: this run proves nothing about any defence.")
    print(
        "\nSSIM is taken with brightness and contrast of each channel fitted to the truth, which batch normalisation hides "
        "with or without a key. `label` is the share of classes read off the update without any search. Retrieval is the "
        f"share of faces that find themselves among {base.extra['candidates'] if base else 'all'} faces. {grid(runs)} "
        "shows the faces, then what was made of each model in the table's order.\n"
        f"{time.perf_counter() - start:.0f} s in all."
    )
    sys.stdout.flush()
    return 0 if visible else 1


if __name__ == "__main__":
    raise SystemExit(main())
