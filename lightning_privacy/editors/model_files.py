"""What identifies a diffusion model inside a key: its hub id, or the content of its files."""

import hashlib
from pathlib import Path

from lightning_privacy.errors import InputError

__all__ = ["model_mark", "refuse_pickle"]

_BLOCK, _BLOCKS = 4096, 16


def model_mark(pretrained: str, revision: str | None = None) -> str:
    """Return a text that is the same for the same weights: wherever a local model lies, and the id of one on the hub.

    Of a local model every file's name, size and some blocks count, which tells any two trained models apart in no time.

    Args:
        pretrained: ``tiny``, a folder, a file, or a hub id.
        revision: Of the hub.

    Example:
        >>> model_mark("timbrooks/instruct-pix2pix", "fp16")
        'timbrooks/instruct-pix2pix@fp16'
    """
    if pretrained == "tiny":
        from lightning_privacy.resources import tiny_stable_diffusion

        path = tiny_stable_diffusion()
    else:
        path = Path(pretrained).expanduser()
    if not path.exists():
        return f"{pretrained}@{revision or 'main'}"
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in _COUNT)
    for file in files:
        name = "" if path.is_file() else file.relative_to(path).as_posix()
        size = file.stat().st_size
        digest.update(f"{name} {size}:".encode())
        with file.open("rb") as opened:
            for start in range(0, size, max(_BLOCK, size // _BLOCKS)):
                opened.seek(start)
                digest.update(opened.read(_BLOCK))
    return f"sha256 {digest.hexdigest()[:32]}"


_COUNT = {".safetensors", ".json", ".txt"}


def refuse_pickle(pretrained: str) -> None:
    """Refuse a file that can run any code when it is opened.

    Raises:
        InputError: it is a pickle by its name.
    """
    if Path(pretrained).suffix.lower() in {".ckpt", ".pt", ".pth", ".bin"}:
        raise InputError(
            f"{pretrained} is a pickle, which can run any code when opened. Convert it to .safetensors first."
        )
