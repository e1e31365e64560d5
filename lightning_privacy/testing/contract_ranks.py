"""Contract checks on two processes."""

from pathlib import Path
from typing import Any

from lightning_privacy.testing.expect import expect
from lightning_privacy.testing.fitting import compare, fit
from lightning_privacy.testing.ranks import RankPool
from lightning_privacy.testing.settings import DefenceCase

__all__ = ["check_ranks", "fit_on_rank", "resume_on_rank"]

BATCH, RELATIVE = 8, 1e-5


def check_ranks(case: DefenceCase, folder: Path | str, pool: RankPool) -> None:
    """Under DDP ranks stay bit-equal, learners included, resume exactly, and agree with one process to 1e-5.

    Args:
        case: The defence.
        folder: An empty folder.
        pool: Two ranks.
    """
    here, there = pool.run(fit_on_rank, case, str(folder))
    differ = compare(here, there)
    expect(not differ, f"`{case.name}`: the two ranks differ after an epoch: {differ[:5]}.")
    pool.run(resume_on_rank, case, str(Path(folder, "resume")))
    if case.world_invariant:
        alone = _fit(case, folder, BATCH, case.build(**{k: 2 * getattr(case.build(), k) for k in case.per_process}))
        differ = compare(here["weights"], alone["weights"], "weights", RELATIVE)
        expect(not differ, f"`{case.name}`: two processes are not one process on the same global batch: {differ[:5]}.")


def fit_on_rank(case: DefenceCase, folder: str) -> dict[str, Any]:
    """Train on one of two ranks.

    Args:
        case: The defence.
        folder: Root folder.
    """
    return _fit(case, folder, BATCH // 2, case.build(), strategy="ddp", devices=2)


def resume_on_rank(case: DefenceCase, folder: str) -> None:
    """Interrupt and resume on two ranks; each compares what it loads.

    Args:
        case: The defence.
        folder: Root folder, the same on both.
    """
    from lightning_privacy.testing.contract import check_resume

    check_resume(case, folder, batch_size=BATCH // 2, strategy="ddp", devices=2)


def _fit(case: DefenceCase, folder: Path | str, batch_size: int, defence: Any, **options: Any) -> dict[str, Any]:
    fitted = fit(folder, case.module(), case.data(batch_size), [defence], **options)
    return {"weights": fitted.weights, "state": defence.state_dict(), "steps": fitted.trainer.global_step}
