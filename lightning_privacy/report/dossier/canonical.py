"""The dossier as a file: one JSON text for one content, its hash, its schema, and how it is read back."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.models import SCHEMA_VERSION, ReleaseDossier
from lightning_privacy.report.dossier.policy import first_problem

__all__ = ["SCHEMA_FILE", "content_hash", "dossier_json", "json_schema", "load_dossier"]

SCHEMA_FILE = Path(__file__).with_name("dossier.schema.json")
"""The schema as shipped; a test holds it against `json_schema`."""

_OF_THE_BUILD = {"created_at", "dossier_id"}


def dossier_json(dossier: ReleaseDossier) -> str:
    """Return the dossier as JSON with sorted keys; numbers that are not finite cannot occur in it."""
    return json.dumps(_plain(dossier), sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def content_hash(dossier: ReleaseDossier) -> str:
    """Return the sha256 of what a dossier says: all but its id and the time at which it was made."""
    content = {name: value for name, value in _plain(dossier).items() if name not in _OF_THE_BUILD}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def json_schema() -> str:
    """Return the JSON Schema of a dossier, as kept in `SCHEMA_FILE`."""
    schema = ReleaseDossier.model_json_schema(mode="serialization")
    return json.dumps(schema, sort_keys=True, indent=1) + "\n"


def load_dossier(path: str | os.PathLike[str]) -> ReleaseDossier:
    """Read a ``dossier.json``.

    Args:
        path: The file.

    Raises:
        InputError: there is none, it is no dossier, or it is newer than this installation.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as gone:
        raise InputError(f"The dossier {path} cannot be read: {gone.strerror}.") from gone
    except ValueError as wrong:
        raise InputError(f"{path} is no dossier: it is not JSON ({wrong}).") from wrong
    except RecursionError as deep:
        raise InputError(f"{path} is no dossier: it is nested too deeply.") from deep
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(
            f"{path} is no dossier: it has no `schema_version`. `lightning-privacy dossier RUN` makes one."
        )
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}, and this installation reads up to {SCHEMA_VERSION}. Update it: "
            "`pip install -U lightning-privacy`."
        )
    try:
        return ReleaseDossier.model_validate(raw)
    except ValidationError as wrong:
        raise InputError(f"{path} is a damaged dossier: {first_problem(wrong, raw)}") from wrong


def _plain(dossier: ReleaseDossier) -> dict[str, Any]:
    return dossier.model_dump(mode="json")
