"""The release dossier: what is known of a model's leak, held against a policy, as files that may themselves be released."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.report.dossier.build import Built as Built
    from lightning_privacy.report.dossier.build import build_dossier as build_dossier
    from lightning_privacy.report.dossier.canonical import content_hash as content_hash
    from lightning_privacy.report.dossier.canonical import load_dossier as load_dossier
    from lightning_privacy.report.dossier.models import ReleaseDossier as ReleaseDossier
    from lightning_privacy.report.dossier.policy import Policy as Policy
    from lightning_privacy.report.dossier.policy import Rule as Rule
    from lightning_privacy.report.dossier.policy import load_policy as load_policy
    from lightning_privacy.report.dossier.records import load_records as load_records
    from lightning_privacy.report.dossier.verdict import decide as decide
    from lightning_privacy.report.dossier.write import write_dossier as write_dossier

_HERE = "lightning_privacy.report.dossier."
_WHERE = {
    "Built": _HERE + "build",
    "Policy": _HERE + "policy",
    "ReleaseDossier": _HERE + "models",
    "Rule": _HERE + "policy",
    "build_dossier": _HERE + "build",
    "content_hash": _HERE + "canonical",
    "decide": _HERE + "verdict",
    "load_dossier": _HERE + "canonical",
    "load_policy": _HERE + "policy",
    "load_records": _HERE + "records",
    "write_dossier": _HERE + "write",
}
__all__ = [
    "Built",
    "Policy",
    "ReleaseDossier",
    "Rule",
    "build_dossier",
    "content_hash",
    "decide",
    "load_dossier",
    "load_policy",
    "load_records",
    "write_dossier",
]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
