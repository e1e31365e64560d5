"""Train an over-fitted face classifier and a regularised one, audit both with shadow models, and write their dossiers.

    make audit-demo

Both are ordinary command lines, which are printed. The first ends with the verdict `no_go`. Nothing is chosen on the
records that are scored.
"""

import os
import sys
import time
from pathlib import Path

from lightning_privacy.cli.main import main as lightning_privacy
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.report.summary import summarise
from lightning_privacy.report.tables import number

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ["--config", str(ROOT / "recipes/audit_faces_classifier.yaml")]
RUNS = {
    "over-fitted": [],
    "regularised": ["--config", str(ROOT / "configs/trainer/regularised.yaml")],
}
OUT = Path("runs/audit-demo")
VERDICTS = {0: "go", 10: "conditional", 20: "no_go", 30: "insufficient_evidence"}


def command(*arguments: str) -> int:
    """Run one command line of the toolkit, printed as a user would type it."""
    shown = [os.path.relpath(a, ROOT) if a.startswith(str(ROOT)) else a for a in arguments]
    print("\n" + " ".join(["$ lightning-privacy", *shown]), flush=True)
    return lightning_privacy(list(arguments))


def main() -> int:
    """Run everything and print what it means."""
    if OUT.exists():
        raise SystemExit(f"{OUT} holds an earlier demo; remove it (rm -r {OUT}) to run again.")
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "WANDB_SILENT": "true"}
    start = time.perf_counter()
    for name, extra in RUNS.items():
        if command("fit", *RECIPE, *extra, "--run_name", f"audit-demo/{name}"):
            return 1
        if command("dossier", str(OUT / name), "--policy", "research-default"):
            return 1
    codes = {name: command("gate", str(OUT / name), "--policy", "research-default") for name in RUNS}
    print()
    for name, code in codes.items():
        top = summarise(RunFolder.open(OUT / name)).strongest()
        auroc = number(top.metrics["auroc"]) if top is not None else "-"
        attack = top.attack if top is not None else "no attack"
        print(f"{name:12} {VERDICTS.get(code, 'error'):22} strongest attack {attack}, AUROC {auroc}")
    print(
        "\nAUROC is how well the strongest attack, chosen on records that are not scored, tells members from non-members: "
        "0.5 is guessing. One seed each: the intervals cover the records, not another split or another training.\n"
        f"{time.perf_counter() - start:.0f} s in all. Open {OUT}/over-fitted/dossier/dossier.html."
    )
    sys.stdout.flush()
    return 0 if codes["over-fitted"] == 20 else 1


if __name__ == "__main__":
    raise SystemExit(main())
