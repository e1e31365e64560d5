"""What a scan found: which secret, where, in what form; never the secret."""

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, order=True)
class Finding:
    """One place where a secret lies.

    Args:
        file: Path of the file; empty for an object in memory.
        entry: Where in it: a tensor's name, a member of an archive, or an offset.
        secret: The vault's name of the secret.
        form: How it lies there, such as ``raw bytes (fp32)`` or ``proportional rows``.
    """

    file: str
    entry: str
    secret: str
    form: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.entry}" if self.file else self.entry
        return f"{place}: `{self.secret}`, {self.form}"
