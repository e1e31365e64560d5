"""Exchange with other tools: SACRO-ML's targets and reports."""

from typing import TYPE_CHECKING

from lightning_privacy.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_privacy.interop.sacro_reader import read_report as read_report
    from lightning_privacy.interop.sacro_report import write_report as write_report
    from lightning_privacy.interop.sacro_target import export_target as export_target

_WHERE = {
    "export_target": "lightning_privacy.interop.sacro_target",
    "read_report": "lightning_privacy.interop.sacro_reader",
    "write_report": "lightning_privacy.interop.sacro_report",
}
__all__ = ["export_target", "read_report", "write_report"]
__getattr__, __dir__ = lazy_names(__name__, _WHERE)
