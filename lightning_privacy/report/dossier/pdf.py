"""The page as PDF, by a headless Chromium where there is one."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from lightning_privacy.errors import InputError

__all__ = ["find_chromium", "run_chromium", "write_pdf"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE = 120  # seconds; chosen here: a page takes a few, a browser that waits for a display never ends


def find_chromium() -> str | None:
    """Return the path of a Chromium on the PATH, or None."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def write_pdf(page: Path, pdf: Path) -> Path:
    """Print a page to PDF.

    Args:
        page: The HTML file.
        pdf: The file to write.

    Raises:
        InputError: there is no Chromium, or it wrote nothing.
    """
    with tempfile.TemporaryDirectory(prefix="dossier-pdf-") as folder:
        made = Path(folder) / "page.pdf"
        run_chromium(f"--print-to-pdf={made}", "--no-pdf-header-footer", page.resolve().as_uri(), made=made)
        pdf.parent.mkdir(parents=True, exist_ok=True)
        part = pdf.with_name(f".{pdf.name}.part")
        shutil.copyfile(made, part)
        part.replace(pdf)
    return pdf


def run_chromium(*options: str, made: Path) -> None:
    """Run a headless Chromium with a profile of its own, and check that it wrote its file.

    Args:
        *options: What it is to do.
        made: The file that it is to write.

    Raises:
        InputError: there is no Chromium, or it wrote nothing.
    """
    browser = find_chromium()
    if browser is None:
        raise InputError(
            f"A PDF needs a Chromium on the PATH (one of {', '.join(_NAMES)}), and there is none. Install one, or print "
            "dossier.html from any browser."
        )
    with tempfile.TemporaryDirectory(prefix="dossier-browser-", ignore_cleanup_errors=True) as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise InputError(
                f"{browser} could not print the dossier: {failure}. Print dossier.html by hand."
            ) from failure
    if not made.is_file() or not made.stat().st_size:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{browser} printed nothing ({last}). Print dossier.html from any browser.")
