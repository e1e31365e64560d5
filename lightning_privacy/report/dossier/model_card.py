"""The model card: the verdict, the numbers and the limitations as Markdown that a model hub shows."""

import yaml

from lightning_privacy.report.dossier.canonical import content_hash
from lightning_privacy.report.dossier.html import render_template
from lightning_privacy.report.dossier.metric_names import metric_label
from lightning_privacy.report.dossier.models import ReleaseDossier
from lightning_privacy.report.dossier.verdict import strongest
from lightning_privacy.report.dossier.wording import VERDICTS, number_text

__all__ = ["render_model_card"]


def render_model_card(dossier: ReleaseDossier) -> str:
    """Return ``MODEL_CARD.md`` with a YAML head that model hubs read.

    Args:
        dossier: The dossier.

    Raises:
        InputError: jinja2 is missing.
    """
    about = dossier.subject.about
    head = {
        "library_name": "lightning",
        **({"license": about.licence} if about.licence else {}),
        "tags": ["privacy-audit", *(p.name for p in dossier.protections)],
    }
    return render_template(
        "model_card.md.j2",
        autoescape=False,
        d=dossier,
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(),
        verdict=VERDICTS[dossier.decision.verdict],
        top=strongest(dossier.attacks),
        label=metric_label,
        number=number_text,
        digest=content_hash(dossier),
    )
