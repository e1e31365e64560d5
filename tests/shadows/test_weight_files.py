"""Files of tensors: several writers at once, and what killed ones leave behind."""

import os
import threading
import time

import torch

from lightning_privacy.shadows import weight_files
from lightning_privacy.shadows.canonical import digest
from lightning_privacy.shadows.weight_files import ABANDONED, read_tensors, remove_abandoned, write_tensors

NAME = f"{'ab' * 32}.safetensors"


def test_two_writers_whose_processes_have_one_number_do_not_meet(tmp_path, monkeypatch):
    """As two containers that share a folder: both write, one is done, the other still has its file."""
    both, save, failed = threading.Barrier(2, timeout=20), weight_files.save_file, []

    def slowly(tensors, path, metadata):
        both.wait()
        save(tensors, path, metadata=metadata)
        both.wait()

    def write(value):
        try:
            write_tensors(tmp_path / NAME, {"w": torch.full((2,), value)}, {"value": 1})
        except OSError as error:
            failed.append(error)

    monkeypatch.setattr(weight_files, "save_file", slowly)
    writers = [threading.Thread(target=write, args=(1.0,)) for _ in range(2)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert failed == []
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    assert read_tensors(tmp_path / NAME, digest({"value": 1}))["w"].tolist() == [1.0, 1.0]


def test_what_killed_writers_left_goes_after_a_day_and_nothing_else_does(tmp_path):
    old = time.time() - ABANDONED - 60
    abandoned = [f".{NAME}.{'0f' * 16}", f".{'ab' * 32}-{'c' * 16}.safetensors.4711"]
    kept = [NAME, ".mine.safetensors.bak", "notes.txt"]
    for name in (*abandoned, *kept):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (old, old))
    young = tmp_path / f".{NAME}.{'1e' * 16}"
    young.write_bytes(b"half")  # still being written
    remove_abandoned(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*kept, young.name}
    remove_abandoned(tmp_path / "not there")
