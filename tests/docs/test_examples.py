"""The example of a project that knows nothing of this package still works."""

import importlib.util
from pathlib import Path

import pytest

import lightning_privacy

EXAMPLES = Path(lightning_privacy.__file__).parent.parent / "examples"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice to the project, which is not ours to change
def test_an_existing_project_is_defended_under_both_styles_of_data(capsys):
    spec = importlib.util.spec_from_file_location("existing_project", EXAMPLES / "existing_project.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(epochs=1)
    said = capsys.readouterr().out
    assert "a LightningDataModule: trained 4 steps" in said
    assert "a data set: trained 4 steps" in said
