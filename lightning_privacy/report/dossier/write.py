"""Writing a dossier's files, all of them or none."""

import os
import shutil
import tempfile
from pathlib import Path

from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.build import Built
from lightning_privacy.report.dossier.canonical import content_hash, dossier_json
from lightning_privacy.report.dossier.html import render_html
from lightning_privacy.report.dossier.model_card import render_model_card
from lightning_privacy.report.dossier.models import Artifact, ReleaseDossier
from lightning_privacy.report.dossier.pdf import write_pdf
from lightning_privacy.report.dossier.records import save_records
from lightning_privacy.report.dossier.run_secret import run_secret, salt_of
from lightning_privacy.report.dossier.scrub import check_releasable
from lightning_privacy.report.dossier.split_record import record_ids

__all__ = ["FILES", "write_dossier"]

FILES = ("records.npz", "dossier.html", "MODEL_CARD.md", "dossier.pdf", "dossier.json")
"""In the order in which they are put in place: the JSON, which names the others' hashes, last."""


def write_dossier(built: Built, run: RunFolder, folder: Path, pdf: bool = False) -> ReleaseDossier:
    """Write the files of a dossier; what is there stays as it was until all of them are ready.

    The salt of the record ids stays in the run's folder, in ``dossier_secret``.

    Args:
        built: The dossier with its records.
        run: The run that it is about.
        folder: Where the files go; made if needed.
        pdf: Also print the page to ``dossier.pdf``.

    Returns:
        The dossier as written, with its artefacts.

    Raises:
        InputError: the folder cannot be written, a package or Chromium is missing, or a text would name what must stay.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".dossier-", dir=folder))
    except OSError as wrong:
        raise _unwritable(folder, wrong) from wrong
    try:
        _check_targets(folder)
        dossier = _write_parts(built, run, staging, pdf)
        _check_targets(folder)  # again, after what may have taken minutes
        _put_in_place(staging, folder)
        return dossier
    except (OSError, UnicodeEncodeError) as wrong:
        raise _unwritable(folder, wrong) from wrong
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_targets(folder: Path) -> None:
    """Refuse before the first file is replaced what would stop at a later one."""
    blocked = [folder / name for name in FILES if (folder / name).is_dir() and not (folder / name).is_symlink()]
    if blocked:
        raise InputError(
            f"{blocked[0]} is a folder, where a file of the dossier goes. Remove it, or give another --out."
        )


def _put_in_place(staging: Path, folder: Path) -> None:
    for name in FILES:
        if (staging / name).is_file():
            os.replace(staging / name, folder / name)
        else:  # of an earlier dossier, and not of this one
            (folder / name).unlink(missing_ok=True)


def _unwritable(folder: Path, wrong: OSError | UnicodeEncodeError) -> InputError:
    return InputError(f"The dossier cannot be written to {folder}: {getattr(wrong, 'strerror', None) or wrong}.")


def _write_parts(built: Built, run: RunFolder, staging: Path, pdf: bool) -> ReleaseDossier:
    dossier, secret, salt = built.dossier, b"", b""
    if built.records is not None:
        secret = run_secret(run.path)
        salt = salt_of(secret, content_hash(dossier))
        digest = save_records(staging / "records.npz", built.records, salt)
        kind = "application/x-npz"
        artifact = Artifact(path="records.npz", sha256=digest, media_type=kind, disclosure="restricted")
        dossier = dossier.model_copy(update={"artifacts": [artifact]})
    texts = {
        "dossier.json": dossier_json(dossier),
        "dossier.html": render_html(dossier),
        "MODEL_CARD.md": render_model_card(dossier),
    }
    ids = record_ids(run)
    for name, text in texts.items():
        check_releasable(text, ids, [b.hex() for b in (secret, salt)])
        (staging / name).write_text(text, encoding="utf-8")
    if pdf:
        write_pdf(staging / "dossier.html", staging / "dossier.pdf")
    return dossier
