"""Every form in which a secret may lie is found and named; what is like a secret and is none is not."""

import base64
import gzip
import io
import json
import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from lightning_privacy.errors import InputError
from lightning_privacy.secrets import Finding, find_secrets, unsearchable, zero_mean_key
from lightning_privacy.secrets.byte_search import ByteSearch
from lightning_privacy.secrets.fingerprint import tensor_bytes
from lightning_privacy.secrets.stream_search import Search
from lightning_privacy.secrets.targets import Pattern

TEXT = 'a photo of the sks dog, ünïcode, "quoted"'
LINES = "first line of the prompt\nand the second"
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(params=["normal", "rademacher"])
def key(request):
    return zero_mean_key(256, request.param)


@pytest.fixture
def secrets(key):
    weights = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    return {"key": key, "lock/weight": weights, "prompt": TEXT, "lines": LINES}


def _found(subject, secrets):
    return {finding.secret for finding in find_secrets(subject, secrets)}


def _noise(n=50_000):
    return np.random.default_rng(7).bytes(n)


@pytest.mark.parametrize("kind", DTYPES)
def test_raw_bytes_are_found_in_any_file_at_any_offset(tmp_path, secrets, kind):
    for name in ("key", "lock/weight"):
        for shift in (0, 5):
            file = tmp_path / f"some.{shift}"
            file.write_bytes(_noise()[: 40_000 + shift] + tensor_bytes(secrets[name].to(DTYPES[kind])) + _noise())
            (finding, *more) = find_secrets(file, secrets)
            assert (finding.secret, finding.form, more) == (name, f"raw bytes ({kind})", [])
            assert 40_000 <= int(finding.entry.removeprefix("byte ")) - shift < 40_000 + 8 * secrets[name].numel()


def test_a_piece_and_the_transpose_are_found_in_raw_bytes(tmp_path, gauss):
    secrets = {"w": torch.randn(6, 64), "gauss": gauss}
    (tmp_path / "a.bin").write_bytes(b"x" + tensor_bytes(secrets["w"][2:4, 10:]))
    (tmp_path / "b.bin").write_bytes(b"xyz" + tensor_bytes(secrets["w"].t()))
    (tmp_path / "c.bin").write_bytes(b"xy" + tensor_bytes(gauss[5:25]))
    assert [(f.file[-5:], f.secret) for f in find_secrets(tmp_path, secrets)] == [
        ("a.bin", "w"),
        ("b.bin", "w"),
        ("c.bin", "gauss"),
    ]


NUMBERS = {
    "json": lambda t: json.dumps({"a": 1, "v": t.tolist()}),
    "json lines": lambda t: json.dumps({"v": t.tolist()}, indent=1),
    "yaml": lambda t: yaml.safe_dump({"v": t.tolist()}),
    "print": lambda t: "the tensor is " + repr(t),
    "six digits": lambda t: "\n".join(f"{v:.6g}," for v in t.flatten().tolist()),
    "exponents": lambda t: ";".join(f"{v:+.5e}" for v in t.flatten().tolist()),
    "hex": lambda t: tensor_bytes(t).hex(),
    "HEX": lambda t: tensor_bytes(t.half()).hex(" ").upper(),
    "base64": lambda t: "xx" + base64.b64encode(tensor_bytes(t)).decode(),
    "base64 lines": lambda t: base64.encodebytes(b"!" + tensor_bytes(t.double())).decode(),
    "base64 url": lambda t: base64.urlsafe_b64encode(b"??" + tensor_bytes(t)).decode(),
    "base64 json": lambda t: json.dumps({"pem": base64.encodebytes(tensor_bytes(t)).decode()}),
}


@pytest.mark.parametrize("write", NUMBERS.values(), ids=NUMBERS)
def test_numbers_written_as_text_are_found(tmp_path, secrets, write):
    for name in ("key", "lock/weight"):
        (tmp_path / "log.txt").write_text("2024-01-02 loss 0.25\n" * 500 + write(secrets[name]) + "\nlr 0.1")
        assert _found(tmp_path / "log.txt", secrets) == {name}


TEXTS = {
    "plain": lambda t: f"user said: {t}.".encode(),
    "json": lambda t: json.dumps({"p": t}).encode(),
    "json unicode": lambda t: json.dumps({"p": t}, ensure_ascii=False).encode(),
    "repr": lambda t: repr([t]).encode(),
    "utf-16": lambda t: t.encode("utf-16-le"),
    "hex": lambda t: t.encode().hex().encode(),
    "base64": lambda t: base64.b64encode(b"1" + t.encode()),
    "yaml block": lambda t: yaml.safe_dump({"p": t}, width=18, allow_unicode=True, default_style="|").encode(),
}


@pytest.mark.parametrize("write", TEXTS.values(), ids=TEXTS)
def test_texts_are_found_in_every_encoding(tmp_path, write):
    for name, text in {"prompt": TEXT, "lines": LINES}.items():
        (tmp_path / "config.yaml").write_bytes(b"seed: 1\n" + write(text) + b"\nend: 2\n")
        assert _found(tmp_path / "config.yaml", {"prompt": TEXT, "lines": LINES}) == {name}


def test_values_and_keys_of_objects_in_memory_are_found_and_placed(secrets, key):
    weights = secrets["lock/weight"]
    held = {
        "state.inner.0": {"state": {"inner": [key.double()]}},
        "arrays.w": {"arrays": {"w": weights.numpy()}},
        "listed": {"listed": key.tolist()},
        "flat": {"flat": torch.cat([torch.zeros(9), weights.flatten()])},
        "turned": {"turned": weights.t().bfloat16()},
        "shaped": {"shaped": key.reshape(4, 8, 8)},
        "args.text": {"args": SimpleNamespace(text=f"say {TEXT}")},
        "raw": {"raw": tensor_bytes(key)},
    }
    for place, subject in held.items():
        findings = find_secrets(subject, secrets)
        assert {f.entry for f in findings} == {place}
        assert len({f.secret for f in findings}) == 1
    assert _found({f"--{TEXT}": 1}, secrets) == {"prompt"}
    module = nn.Linear(64, 6)
    with torch.no_grad():
        module.weight.copy_(weights)
    assert _found([module, {"a": module}], secrets) == {"lock/weight"}


def test_multiples_are_found_along_any_dimension(secrets, key):
    noise = torch.randn(40, 256) * 1e-3
    for subject in (
        -0.03 * key,
        torch.outer(torch.randn(5), key) + 1e-2,
        torch.outer(torch.randn(5), key).t(),
        torch.outer(torch.rand(5) + 1, key)[:, :, None, None].half(),
        torch.cat([noise, 1e-6 * key[None], noise]),
    ):
        assert _found({"m": subject}, secrets) == {"key"}
    assert _found({"m": secrets["lock/weight"] * 3.7}, secrets) == {"lock/weight"}


def test_the_square_of_a_key_is_found_where_it_tells_something(gauss):
    second_moment = torch.outer(torch.rand(5), gauss**2)
    (finding,) = find_secrets({"exp_avg_sq": second_moment}, {"key": gauss})
    assert finding.form == "rows proportional to its square"
    signs = zero_mean_key(64)
    assert find_secrets({"exp_avg_sq": torch.outer(torch.rand(5), signs**2)}, {"key": signs}) == []


def test_momentum_under_weight_decay_is_found(gauss):
    layer = nn.Linear(64, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    targets = torch.linspace(-3, 3, 8)
    for _ in range(20):
        optimizer.zero_grad()
        (layer(gauss) * targets).sum().backward()
        optimizer.step()
    assert {f.form for f in find_secrets(optimizer, {"key": gauss})} == {"proportional rows"}


def test_what_is_like_a_secret_and_is_none_is_not_found(tmp_path, secrets):
    spiked = secrets["lock/weight"].clone()
    spiked[0, 3] = 1e4
    plain = secrets | {"gains": 1 + 0.001 * torch.randn(64), "spiked": spiked}
    net = nn.Sequential(nn.Linear(256, 64), nn.BatchNorm1d(64), nn.Linear(64, 6), nn.Embedding(100, 256))
    optimizer = torch.optim.Adam(net.parameters())
    net[2](net[1](net[0](torch.randn(16, 256)))).sum().backward()
    optimizer.step()
    objects = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "signs": torch.randn(300, 256).sign(),
        "constants": [torch.zeros(6, 64), torch.ones(1, 64)],
        "spike": torch.eye(256),
        "outlier": torch.eye(64)[3] * 5e3 + torch.randn(64),
        "steps": list(range(1000)),
        "half of a text": TEXT[:20],
        "other gains": 1 + 0.001 * torch.randn(64),
    }
    assert find_secrets(objects, plain) == []
    torch.save(objects, tmp_path / "net.pt")
    (tmp_path / "noise").write_bytes(_noise(300_000))
    (tmp_path / "log.txt").write_text("\n".join(f"step {i} loss {1 / (i + 1):.4f} acc 1.0 -1.0" for i in range(3000)))
    assert find_secrets(tmp_path, plain) == []


FILES = {
    "last.ckpt": ("state_dict.lock.key", lambda p, k: torch.save({"epoch": 3, "state_dict": {"lock.key": k}}, p)),
    "model.pt": ("model/data/", lambda p, k: torch.save({"m": nn.Linear(2, 3), "k": torch.outer(torch.rand(4), k)}, p)),
    "old.pth": ("lock", lambda p, k: torch.save({"lock": k}, p, _use_new_zipfile_serialization=False)),
    # a view brings its whole storage along
    "view.pt": ("view/data/0", lambda p, k: torch.save({"shared": torch.cat([k, torch.randn(10)])[-10:]}, p)),
    "w.safetensors": ("b", lambda p, k: save_file({"a": torch.ones(3), "b": -k * 0.25}, p)),
    "w.npz": ("second.npy", lambda p, k: np.savez_compressed(p, first=np.ones(3), second=k.numpy() * 2)),
    "w.npy": ("the array", lambda p, k: np.save(p, 0.5 * k.numpy())),
    "log.gz": ("unpacked, byte", lambda p, k: p.write_bytes(gzip.compress(json.dumps(k.tolist()).encode()))),
    "module.pkl": ("byte", lambda p, k: p.write_bytes(pickle.dumps({"k": k.numpy(), "f": SimpleNamespace(a=1)}))),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_opened_and_the_place_in_them_is_named(tmp_path, secrets, key, name):
    entry, write = FILES[name]
    write(tmp_path / name, key)
    findings = find_secrets(tmp_path, secrets)
    assert {f.secret for f in findings} == {"key"}
    assert any(f.entry.startswith(entry) for f in findings)
    assert all(f.file == str(tmp_path / name) for f in findings)


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_pickle_is_executed(tmp_path, secrets, key):
    bomb = _Bomb(str(tmp_path / "executed"))
    for zipped in (True, False):
        torch.save({"bomb": bomb, "key": key}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
        assert _found(tmp_path, secrets) == {"key"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([bomb]))
    np.save(tmp_path / "x.npy", np.array([bomb], dtype=object), allow_pickle=True)
    find_secrets(tmp_path, secrets)
    assert not (tmp_path / "executed").exists()


def test_nothing_is_lost_between_the_pieces_of_a_big_file(key):
    search = Search({"key": key, "prompt": TEXT}, chunk=16384)
    for hidden, name in ((tensor_bytes(key), "key"), (repr(key.tolist()).encode(), "key"), (TEXT.encode(), "prompt")):
        for start in (16384 - 40, 16384 - 1, 2 * 16384 - len(hidden) // 2):
            body = bytearray(b" " * 60_000)
            body[start : start + len(hidden)] = hidden
            assert name in {secret for _, secret, _ in search.in_bytes(bytes(body))}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=5), st.data())
def test_the_byte_search_agrees_with_a_plain_search(content, needles, data):
    at = data.draw(st.integers(0, len(content)))
    content = content[:at] + data.draw(st.sampled_from(needles)) + content[at:]
    found = {p.content for _, p in ByteSearch([Pattern(str(i), "f", n) for i, n in enumerate(needles)]).find(content)}
    assert found == {n for n in needles if n in content}


def test_nothing_that_is_printed_holds_the_secret(tmp_path, secrets, key):
    torch.save({TEXT: key}, tmp_path / "x.pt")
    (tmp_path / f"{TEXT}.txt").write_text("nothing")
    findings = find_secrets(tmp_path, secrets)
    assert {f.secret for f in findings} == {"key", "prompt"}
    shown = [str(f) for f in findings] + [repr(f) for f in findings] + [repr(Search(secrets).targets)]
    assert find_secrets({"shown": shown, "pattern": repr(Pattern("a", "b", TEXT.encode()))}, secrets) == []


def test_the_vault_itself_in_the_folder_is_a_finding(vault, key):
    vault.put("key", key)
    (vault.path.parent / "notes.txt").write_text("nothing here")
    place = Finding(str(vault.path), "the whole file", "the vault", "this is the vault itself")
    assert find_secrets(vault.path.parent, vault) == [place]


def test_what_cannot_be_told_from_anything_else_is_named_and_not_looked_for():
    hopeless = {
        "bias": torch.zeros(64),
        "gain": torch.ones(500),
        "few": torch.tensor([0.3, 0.7]),
        "pin": "1234",
        "signs": zero_mean_key(16),
        "wrong": torch.tensor([float("nan")] * 50),
    }
    assert unsearchable(hopeless | {"key": torch.randn(32), "text": "long enough"}) == sorted(hopeless)
    with pytest.raises(InputError, match="no secret to look for"):
        find_secrets({"a": 1}, hopeless)


def test_what_cannot_be_searched_is_refused(tmp_path, secrets):
    with pytest.raises(InputError, match="There is no"):
        find_secrets(tmp_path / "none", secrets)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no files"):
        find_secrets(tmp_path / "empty", secrets)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", TEXT * 50)
    raw = bytearray(packed.getvalue())
    raw[45:55] = b"\xff" * 10
    (tmp_path / "broken.zip").write_bytes(raw)
    with pytest.raises(InputError, match=r"broken\.zip is damaged or encrypted"):
        find_secrets(tmp_path / "broken.zip", secrets)
