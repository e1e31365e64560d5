"""Lock a face classifier to pictures edited with a key, in several ways, and use it without the key in every way we know.

    make lock-demo

Each run is an ordinary command line, which is printed. The editor is the bundled tiny Stable Diffusion with a secret prompt
and seed, or one keyed order of all pixels. Every attack makes its choices on pictures of its own. One seed: intervals are over
pictures.
"""

import sys
import time
from pathlib import Path

from side_by_side import fit_all

from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.report.tables import number

OUT = Path("runs/lock-demo")
VAULT, EDITS = OUT / "private/lock.safetensors", OUT / "private/edits"
EDITOR = "data.init_args.inner.init_args.editor"
DIFFUSION = ["--config", "recipes/modellock_faces.yaml", f"--{EDITOR}.init_args.key", f"vault:{VAULT}#prompt"]
ORDER = ["--config", "recipes/modellock_faces_order.yaml", f"--{EDITOR}.init_args.key", f"vault:{VAULT}#order"]
# Attackers as strong as the demo's time allows.
BUDGET = [
    *("--trainer.max_epochs", "40", "--audits.lock.shares", "[0.05, 0.4]"),
    *("--audits.lock.attacks", "[no_key, wrong_prompt, wrong_seed, prompt_dictionary, mean_residual, value_order, block_map, "
      "score_map, pair_unlocker, label_unlocker, fine_tune, weight_layout]"),
    *("--audits.lock.attack_args", "{fine_tune: {steps: 80, rates: [0.001]}, pair_unlocker: {steps: 100, rates: [0.003]}, "
      "label_unlocker: {steps: 100, rates: [0.003]}, weight_layout: {steps: 100}}"),
]  # fmt: skip
RUNS = {
    "contrastive": [*DIFFUSION, "--defences.model_lock.mode", "contrastive", "--data.inner.decoys", "1"],
    "wrong-label": DIFFUSION,
    "edited-only": [*DIFFUSION, "--config", "configs/defences/model_lock_paper.yaml"],
    "order": ORDER,
    "unlocked": [*DIFFUSION, "--defences.model_lock", "null", "--data.inner.locked", "false"],
}
GUESSES = ("no_key", "wrong_prompt", "wrong_seed", "prompt_dictionary", "mean_residual")
MEANING = {
    "unlocked": "trained on raw pictures, no lock: UP is what it makes of edited ones",
    "edited-only": "trained on edited pictures alone, as the abstract of ModelLock says",
    "wrong-label": "raw pictures besides, with wrong labels",
    "contrastive": "raw pictures, wrong keys and residues besides, sent to a reject class and made flat",
    "order": "one keyed order of all pixels, for a network without convolutions; raw and wrongly ordered ones get wrong labels",
}
# 5 and 40 per cent of the 200 pictures that a model is trained on, of which the attacker has 64.
COLUMNS = {
    "LP": "no_key",
    "wrong prompt": "wrong_prompt",
    "wrong seed": "wrong_seed",
    "residue": "mean_residual",
    "10 labels": "fine_tune/10_labels",
    "64 labels": "fine_tune/64_labels",
    "order read": "weight_layout/64_labels",
    "scratch 10": "scratch/10_labels",
    "scratch 64": "scratch/64_labels",
}


def percent(result: AttackResult | None) -> str:
    """Return an accuracy in per cent."""
    return "-" if result is None else f"{100 * result.metrics['accuracy'].value:.0f}"


def table(runs: dict[str, RunFolder]) -> None:
    """Print one row a model."""
    print(
        f"\n{'accuracy in %':13} {'UP':>4} "
        + " ".join(f"{name:>12}" for name in COLUMNS)
        + "  strongest without the key"
    )
    for name in MEANING:
        by = {r.attack: r for r in runs[name].results()}
        cells = " ".join(f"{percent(by.get(attack)):>12}" for attack in COLUMNS.values())
        best = by["strongest"]
        share = number(best.metrics["accuracy"], 2)
        print(f"{name:13} {percent(by['with_key']):>4} {cells}  {share} by {best.extra['chosen_attack']}")
    print(f"chance        {percent(next(r for r in runs['unlocked'].results() if r.attack == 'chance')):>4}")


def holding(results: dict[str, dict[str, AttackResult]], base: float, attacks: tuple[str, ...]) -> str:
    """Return the locks that keep UP and hold against some attacks, in words."""
    kept = []
    for name, by in results.items():
        up = by["with_key"].metrics["accuracy"].value
        best = max(by[each].metrics["accuracy"].value for each in attacks if each in by)
        if name != "unlocked" and up >= base - 0.03 and best <= 0.5 * up:
            kept.append(name)
    return ", ".join(kept) if kept else "none of these does"


def main() -> int:
    """Run everything and print what it means."""
    start = time.perf_counter()
    if not fit_all({name: [*own, "--data.inner.cache", str(EDITS), *BUDGET] for name, own in RUNS.items()}, OUT):
        return 1
    runs = {name: RunFolder.open(OUT / name) for name in RUNS}
    table(runs)
    print()
    for name, meaning in MEANING.items():
        print(f"{name:13} {meaning}")
    results = {name: {r.attack: r for r in run.results()} for name, run in runs.items()}
    notes = {f"{name}: {n}" for name, by in results.items() for n in by["strongest"].notes}
    print("\n".join(["", *sorted(notes)]))
    base = results["unlocked"]["no_key"].metrics["accuracy"].value
    print(
        f"\nA lock that is worth its name keeps UP within 3 points of the unlocked model ({100 * base:.0f}) and lets no "
        f"attacker past half of UP.\nAgainst raw pictures, wrong keys and a mean residue: {holding(results, base, GUESSES)}.\n"
        f"Against every attack, those from pairs and labels too: {holding(results, base, ('strongest',))}.\n"
        f"{time.perf_counter() - start:.0f} s in all."
    )
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
