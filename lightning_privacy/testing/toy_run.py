"""The folder of a finished run with attack results whose scores are drawn from a seed: what reports and gates are tested on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.metrics.membership import fit_threshold, membership_metrics, roc_curve

__all__ = ["toy_result", "write_toy_run"]


def toy_result(
    name: str = "calibrated_loss",
    leak: float | int = 0.0,
    members: int = 400,
    nonmembers: int = 1200,
    seed: int = 0,
    **changes: Any,
) -> AttackResult:
    """Return the result of a membership attack on Gaussian scores, members ``leak`` standard deviations higher.

    Args:
        name: The attack's name.
        leak: Distance of the means; 0 for no leak.
        members: Evaluated members.
        nonmembers: Evaluated non-members.
        seed: Of the scores.
        **changes: Fields of the result to replace.

    Example:
        >>> round(toy_result(leak=1.0).metrics["auroc"].value, 2)
        0.78
    """
    generator = seeded_generator(seed, name)
    member = leak + torch.randn(members, generator=generator, dtype=torch.float64)
    nonmember = torch.randn(nonmembers, generator=generator, dtype=torch.float64)
    fit = leak + torch.randn(200, generator=generator), torch.randn(200, generator=generator)
    threshold = fit_threshold(*fit)
    result = AttackResult(
        family="membership",
        attack=name,
        access="loss queries",
        seed=seed,
        split_hash="ab" * 32,
        n={"member": members, "holdout": nonmembers},
        metrics=membership_metrics(member, nonmember, threshold=threshold, bootstrap=200, seed=seed),
        fit_auroc=0.5 + leak / 4,
        step=300,
        epoch=3,
        roc=roc_curve(member, nonmember),
        notes=("One split seed says nothing about other splits.",),
        created="2026-01-01T00:00:00+00:00",
        extra={
            "threshold": threshold,
            "member_scores": [float(f"{x:.8g}") for x in member.tolist()],
            "nonmember_scores": [float(f"{x:.8g}") for x in nonmember.tolist()],
        },
    )
    return replace(result, **changes)


def write_toy_run(
    folder: Path,
    results: Sequence[AttackResult] | None = None,
    settings: Mapping[str, Any] | None = None,
    measurements: Sequence[Mapping[str, Any]] = (),
    checkpoint: bytes | None = None,
) -> RunFolder:
    """Write the folder of a run.

    Args:
        folder: The folder, made here.
        results: Attack results; two attacks with a slight leak where None.
        settings: The configuration, added to a small one.
        measurements: Lines of ``measurements.jsonl``.
        checkpoint: Content of ``checkpoints/last.ckpt``; empty for none. One of the results' last step where None.
    """
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    config = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 3, "logger": False, "default_root_dir": str(folder)},
        "model": {"class_path": "lightning_privacy.modules.StableDiffusionLoRA", "init_args": {"rank": 32}},
    }
    run.config.write_text(yaml.safe_dump({**config, **(settings or {})}), encoding="utf-8")
    ids = {role: [f"{role}-{i:060d}" for i in range(n)] for role, n in (("member", 8), ("holdout", 12))}
    run.split.write_text(json.dumps({"split_hash": "ab" * 32, "version": 1, "split_seed": 7, "roles": ids}))
    given = [toy_result(leak=0.1, strongest=True), toy_result("h_prime", leak=0.05)] if results is None else results
    for result in given:
        run.append_result(result)
    for line in measurements:
        run.append_measurement(line)
    if checkpoint != b"":
        run.checkpoints.mkdir()
        path = run.checkpoints / "last.ckpt"
        if checkpoint is None:
            torch.save({"global_step": max((r.step for r in given), default=300), "state_dict": {}}, path)
        else:
            path.write_bytes(checkpoint)
    return run
