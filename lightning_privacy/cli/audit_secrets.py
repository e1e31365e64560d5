"""The verb audit-secrets: does anything that is to be handed out hold a secret of the vault?"""

import argparse
import sys
from pathlib import Path

from lightning_privacy.errors import InputError

__all__ = ["run"]

_NAMED = 5  # names in the note on what was not searched for


def run(verb: str, args: list[str]) -> int:
    """Print each place where a secret lies, never the secret.

    Returns:
        0 if none was found, 1 if one was, 2 if something could not be searched.
    """
    parser = argparse.ArgumentParser(
        f"lightning-privacy {verb}",
        description="Search checkpoints, run folders and other files for the secrets of a vault. No pickle is executed.",
        epilog="Exit codes: 0 nothing found, 1 found, 2 wrong usage, or something could not be searched.",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a file, or a folder with all that is in it"
    )
    parser.add_argument("--vault", type=Path, required=True, help="the vault whose secrets are looked for")
    parser.add_argument(
        "--passphrase",
        metavar="env:NAME",
        help="where the vault's passphrase lies (default: env:LIGHTNING_PRIVACY_PASSPHRASE)",
    )
    chosen = parser.parse_args(args)
    try:
        return _search(chosen.paths, chosen.vault, chosen.passphrase)
    except InputError as refusal:  # 1 would say that something was found
        print(f"error: {refusal}", file=sys.stderr)
        return 2


def _search(paths: list[Path], vault_path: Path, passphrase: str | None) -> int:
    from lightning_privacy.secrets.scanner import find_secrets, unsearchable
    from lightning_privacy.secrets.secret_ref import SecretRef
    from lightning_privacy.secrets.vault import KeyVault

    vault = KeyVault(vault_path, None if passphrase is None else SecretRef(passphrase))
    found = [finding for path in paths for finding in find_secrets(path, vault)]
    for finding in found:
        print(finding)
    if hopeless := unsearchable(vault):
        more = f" and {len(hopeless) - _NAMED} more" if len(hopeless) > _NAMED else ""
        print(
            f"note: not searched for, being constant or too short: {', '.join(hopeless[:_NAMED])}{more}",
            file=sys.stderr,
        )
    searched = len(vault.secrets()) - len(hopeless)
    outcome = f"found in {len(found)} place(s)" if found else "none found"
    print(f"{searched} secret(s) looked for: {outcome}")
    return 1 if found else 0
