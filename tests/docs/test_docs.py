"""Every example in the README, the method cards and the docstrings runs."""

import doctest
import importlib
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import lightning_privacy
from lightning_privacy.core.registry import defence_names
from lightning_privacy.resources import method_card

PACKAGE = Path(lightning_privacy.__file__).parent
ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(PACKAGE.rglob("README.md"))]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if any(">>> " in line and "+SKIP" not in line for line in path.read_text(encoding="utf-8").splitlines())
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page):
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(page.parent), pattern=page.name).parse(page)
    for example in document.examples():
        example.evaluate()


def test_the_readme_and_every_card_have_code():
    with_code = {page for page in PAGES if "```python" in page.read_text(encoding="utf-8")}
    assert ROOT / "README.md" in with_code
    for name in defence_names():
        assert "```python" in method_card(name), f"the card of {name} shows no Python"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_what_they_say(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed
