"""Fine-tune the tiny Stable Diffusion on real faces with and without defences, attack every model, and write a report.

    make demo

Every row of the table is a run folder that an ordinary command line made; the commands are printed. Nothing is chosen on the
records that are scored: the early-stopped control stops where its validation loss first reaches the recommended run's.
"""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lightning_privacy.cli.main import main as lightning_privacy
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.report.summary import summarise

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("runs/demo")
RECIPE = ["--config", str(ROOT / "recipes/smp_lora_faces.yaml")]
LEAN = ["--config", str(ROOT / "configs/trainer/demo.yaml")]
FRAGMENTS = ROOT / "configs/defences"
UNDEFENDED = ["--defences.smp_lora", "null"]
# The paper's lambda, gain and proxy; rank as in the other rows, and one forward pass instead of two.
SHARED = ["--defences.smp_lora.shared_forward", "true", "--model.init_args.rank", "32", "--model.init_args.alpha", "32"]
RUNS = {
    "smp-recommended": [],
    "undefended": UNDEFENDED,
    "mp-paper": ["--config", str(FRAGMENTS / "mp_lora_paper.yaml"), *SHARED],
    "smp-paper": ["--config", str(FRAGMENTS / "smp_lora_paper.yaml"), *SHARED],
    "untuned": [*UNDEFENDED, "--trainer.max_epochs", "0"],
}
COMPARED = ("smp-recommended", "undefended")  # the early-stopped control needs both


def run(name: str, extra: list[str]) -> None:
    """Train, attack and measure one model, as its command line would, with the output in a log file."""
    arguments = ["fit", *RECIPE, *LEAN, *extra, "--run_name", f"demo/{name}"]
    shown = [os.path.relpath(a, ROOT) if a.startswith(str(ROOT)) else a for a in arguments]
    print(" ".join(["$ lightning-privacy", *shown]) + "\n", end="", flush=True)  # one write: two processes print
    start = time.perf_counter()
    terminal = os.dup(1)
    with (OUT / f"{name}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            code = lightning_privacy(arguments)
        except SystemExit as left:  # as argparse leaves; it would end this process without a word
            code = left.code
        sys.stdout.flush()
    os.dup2(terminal, 1)
    if code:
        raise RuntimeError(f"`{name}` failed; see {OUT / name}.log")
    print(f"  {name}: {time.perf_counter() - start:.0f} s\n", end="", flush=True)


def equal_loss_epoch() -> int:
    """Return the first epoch at which the undefended run's validation loss is as low as the recommended run's at its end."""
    recommended = summarise(RunFolder(OUT / "smp-recommended")).val_loss
    target = recommended[max(recommended)]
    undefended = summarise(RunFolder(OUT / "undefended"))
    steps_an_epoch = undefended.steps // int(undefended.settings["trainer"]["max_epochs"])
    reached = [s for s, loss in sorted(undefended.val_loss.items()) if s and loss <= target]
    step = reached[0] if reached else min(undefended.val_loss, key=undefended.val_loss.__getitem__)
    return max(1, round(step / steps_an_epoch))


def processes() -> ProcessPoolExecutor:
    """Return a pool that runs two models at a time, each in a fresh process of one thread that has imported already."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "WANDB_SILENT": "true"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning_privacy.cli.train", "diffusers", "peft", "wandb", "timm"])
    return ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1)


def main() -> int:
    """Run everything, two models at a time, and print the table."""
    if (OUT / "undefended").exists():
        raise SystemExit(f"{OUT} holds an earlier demo; remove it (rm -r {OUT}) to run again.")
    OUT.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    print(f"Six models, two at a time, about six minutes on two cores; progress is in {OUT}/NAME.log.\n", flush=True)
    with processes() as pool:
        first = [pool.submit(run, name, RUNS[name]) for name in COMPARED]
        others = [pool.submit(run, name, extra) for name, extra in RUNS.items() if name not in COMPARED]
        for done in first:
            done.result()
        # The same run with fewer epochs: draws depend on seed, step and record alone, so it is the same trajectory.
        others.append(pool.submit(run, "early-stopped", [*UNDEFENDED, "--trainer.max_epochs", str(equal_loss_epoch())]))
        for done in others:
            done.result()
    order = ("untuned", "undefended", "early-stopped", "mp-paper", "smp-paper", "smp-recommended")
    folders = [str(OUT / name) for name in order]
    print()
    code = lightning_privacy(["compare", *folders, "--html", str(OUT / "report.html")])
    print(
        f"\n{time.perf_counter() - start:.0f} s in all. Logs, pictures, offline W&B runs and the report are in {OUT}."
    )
    return code


if __name__ == "__main__":
    raise SystemExit(main())
