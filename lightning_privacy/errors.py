"""What the package raises: every message names the parties, the broken property and the remedy."""

__all__ = [
    "DefenceConflictError",
    "InputError",
    "ManifestError",
    "MissingProtocolError",
    "NoEffectError",
    "NonFiniteLossError",
    "PrivacyError",
    "SplitError",
    "UnsupportedStrategyError",
    "WrongKeyError",
]


class PrivacyError(Exception):
    """Base of the package's errors; the command line prints the message without a traceback and exits with 1."""


class DefenceConflictError(PrivacyError):
    """Two defences, or a defence and the trainer, cannot be sound together."""


class UnsupportedStrategyError(DefenceConflictError):
    """A defence cannot run under the trainer's strategy or optimizer."""


class MissingProtocolError(PrivacyError):
    """The user's module lacks a function that a defence or audit needs."""


class NoEffectError(PrivacyError):
    """A defence would change nothing (its patterns matched no layer, its data side is absent)."""


class SplitError(PrivacyError):
    """The roles of the records are inconsistent, overlapping, or not those of the checkpoint."""


class ManifestError(PrivacyError):
    """A checkpoint's defence manifest cannot be honoured."""


class InputError(PrivacyError):
    """A file, folder or value given by the user cannot be used."""


class NonFiniteLossError(PrivacyError):
    """The training loss became NaN or infinite."""


class WrongKeyError(PrivacyError):
    """A key is another than the one that a model was locked with."""
