"""The verbs fit, validate, test and predict."""

from lightning_privacy.cli.privacy_cli import PrivacyCLI

__all__ = ["run"]


def run(verb: str, args: list[str]) -> int:
    """Run one of LightningCLI's verbs."""
    PrivacyCLI([verb, *args])
    return 0
