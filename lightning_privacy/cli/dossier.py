"""The verb dossier: the files on which a decision to release a model rests."""

import argparse
from pathlib import Path

from pydantic import ValidationError

from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.models import About
from lightning_privacy.report.yaml_file import read_yaml

__all__ = ["run"]


def run(verb: str, args: list[str]) -> int:
    """Write dossier.json, records.npz, dossier.html and MODEL_CARD.md of a run, and print the verdict."""
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}",
        description="Gather what is known of a run's leak, decide under a policy, and write it down.",
        epilog="Exits with 0 whatever the verdict is; `lightning-privacy gate` turns it into an exit code. To sign a dossier, "
        "sign dossier.json, which names the hashes of the other files: `ssh-keygen -Y sign -n dossier -f KEY dossier.json`.",
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--policy", default="research-default", help="a shipped policy's name, or a YAML file")
    parser.add_argument("--out", type=Path, help="folder of the files; RUN/dossier if not given")
    parser.add_argument(
        "--about", type=Path, help="YAML file with task, intended_use, out_of_scope, licence, owner, for the model card"
    )
    parser.add_argument(
        "--decisions", type=Path, help="YAML file with `waivers` of blocking rules and `signoff`, by people with names"
    )
    parser.add_argument("--pdf", action="store_true", help="also print dossier.pdf, by a Chromium on the PATH")
    chosen = parser.parse_args(args)
    folder = RunFolder.open(chosen.run)
    from lightning_privacy.cli.gate import print_decision
    from lightning_privacy.report.dossier import build_dossier, load_policy, write_dossier
    from lightning_privacy.report.dossier.decisions import load_decisions
    from lightning_privacy.report.dossier.pdf import find_chromium, run_chromium

    if chosen.pdf and find_chromium() is None:
        run_chromium(made=Path())  # refuses, before anything is computed
    policy = load_policy(chosen.policy)
    built = build_dossier(folder, policy, about=_about(chosen.about), people=load_decisions(chosen.decisions))
    out = chosen.out or folder.path / "dossier"
    dossier = write_dossier(built, folder, out, pdf=chosen.pdf)
    print_decision(dossier.decision, policy)
    print(out / "dossier.html")
    return 0


def _about(path: Path | None) -> About:
    """Read what only the owner can say."""
    if path is None:
        return About()
    try:
        return About.model_validate(read_yaml(path))
    except ValidationError as wrong:
        keys = ", ".join(About.model_fields)
        place = ".".join(map(str, wrong.errors()[0]["loc"])) or "the file"
        raise InputError(f"{path}: {place}: {wrong.errors()[0]['msg']}. It may hold {keys}, each a text.") from wrong
