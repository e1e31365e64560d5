"""A model, a datamodule, a defence and an audit that are small, and a place where a command line can leave its runs."""

import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from lightning_privacy.cli.main import main
from lightning_privacy.core import registry
from lightning_privacy.core.registry import Registry

_FAKES = "lightning_privacy_cli_fakes"


@pytest.fixture(scope="session")
def fakes():
    """The fakes as an importable module: class paths must name something that can be imported."""
    if _FAKES not in sys.modules:
        spec = importlib.util.spec_from_file_location(_FAKES, Path(__file__).with_name("fakes.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[_FAKES] = module
        spec.loader.exec_module(module)
    return sys.modules[_FAKES]


@pytest.fixture
def workspace(fakes, tmp_path, monkeypatch):
    """An empty working directory and registries with the fakes alone."""
    defences = Registry("defence", "lightning_privacy.tests.none", built_ins=None)
    defences.register("louder", fakes.Louder)
    defences.register("needs_clean", fakes.NeedsClean)
    defences.register("dirty", fakes.Dirty)
    audits = Registry("audit", "lightning_privacy.tests.none", built_ins=None)
    audits.register("coin", fakes.CoinAudit)
    for target in ("lightning_privacy.cli.privacy_cli", "lightning_privacy.cli.run_config", registry.__name__):
        monkeypatch.setattr(f"{target}.DEFENCES", defences)
        monkeypatch.setattr(f"{target}.AUDITS", audits)
    monkeypatch.setattr("lightning_privacy.cli.privacy_cli._LIBRARIES", ())  # the fakes are known by being imported
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(workspace):
    """Write a YAML file from a dict; return its name."""

    def _write(name, content):
        (workspace / name).write_text(yaml.safe_dump(content, sort_keys=False))
        return name

    return _write


@pytest.fixture
def recipe(write):
    """A complete recipe on the fakes."""
    return write(
        "toy.yaml",
        {
            "run_name": "toy",
            "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, "enable_model_summary": False},
            "model": {"class_path": "Line", "init_args": {"slope": 2.0}},
            "data": {"class_path": "Wrapped", "init_args": {"inner": {"class_path": "Points", "init_args": {"n": 8}}}},
            "defences": {"louder": {"factor": 3.0}},
            "audits": {"coin": {}},
        },
    )


@pytest.fixture
def run(workspace, capsys):
    """Run a command line in-process; return exit code, standard output, standard error."""

    def _run(*args):
        capsys.readouterr()
        try:
            code = main(list(args))
        except SystemExit as leaving:
            code = leaving.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return _run
