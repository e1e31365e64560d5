"""HKDF against RFC 5869, and keys whose mean is zero."""

from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_privacy.errors import InputError
from lightning_privacy.secrets import hkdf_sha256, site_key, zero_mean_key
from lightning_privacy.secrets.keys import key_from_bytes

# RFC 5869, appendix A.1 to A.3
VECTORS = [
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09"
        "b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    ("0b" * 22, "", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
]


@pytest.mark.parametrize(("key", "salt", "info", "expected"), VECTORS)
def test_hkdf_gives_the_vectors_of_the_rfc(key, salt, info, expected):
    key, salt, info, expected = map(bytes.fromhex, (key, salt, info, expected))
    assert hkdf_sha256(key, len(expected), salt, info) == expected


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=80), st.integers(1, 300), st.integers(1, 300), st.binary(max_size=20))
def test_a_shorter_result_is_the_beginning_of_a_longer_one(key, one, two, info):
    short, long = sorted((one, two))
    assert hkdf_sha256(key, long, b"salt", info)[:short] == hkdf_sha256(key, short, b"salt", info)
    assert hkdf_sha256(key, 32, b"salt", info) != hkdf_sha256(key, 32, b"salt", info + b"!")


@pytest.mark.parametrize("length", [0, 8161])
def test_hkdf_refuses_what_it_cannot_give(length):
    with pytest.raises(InputError, match="8160"):
        hkdf_sha256(b"key", length)


def test_independent_keys_share_nothing_through_one_lock():
    lock = torch.randn(4000, 1024, generator=torch.Generator().manual_seed(0))

    def cosine(a, b):
        return torch.cosine_similarity(lock @ a, lock @ b, dim=0).item()

    for distribution in ("rademacher", "normal"):
        keys = [zero_mean_key(1024, distribution) for _ in range(2)]
        assert abs(cosine(*keys)) < 0.2  # six deviations of 1/sqrt(1024)
        assert all(abs(k.mean()) < 0.2 and abs(k.var() - 1) < 0.3 for k in keys)
    # what the helper is for: keys from U(0, 1) have 3/4 in common
    uniform = [torch.rand(1024) for _ in range(2)]
    assert cosine(*uniform) == pytest.approx(0.75, abs=0.06)


def test_keys_of_sites_depend_on_master_site_and_length_alone():
    master = bytes(range(32))
    for distribution in ("rademacher", "normal"):
        one = site_key(master, "conv1", 64, distribution)
        assert torch.equal(one, site_key(master, "conv1", 64, distribution))
        assert torch.equal(one, site_key(master, "conv1", 128, distribution)[:64])
        assert not torch.equal(one, site_key(master, "conv2", 64, distribution))
        assert not torch.equal(one, site_key(bytes(32), "conv1", 64, distribution))


def test_a_long_key_does_not_repeat_itself():
    key = site_key(bytes(range(32)), "conv1", 3000, "normal")  # three blocks of HKDF
    assert len(key.unique()) == 3000 and key.isfinite().all()
    assert abs(key.mean()) < 0.1 and abs(key.std() - 1) < 0.1


def test_normal_keys_are_quantiles_of_the_bytes():
    material = (2**63).to_bytes(8, "little") + bytes(8) + b"\xff" * 8
    key = key_from_bytes(material, 3, "normal")
    assert key[0].abs() < 1e-6 and key[1] == -key[2] and key.isfinite().all()
    assert key[1].item() == pytest.approx(NormalDist().inv_cdf(2**-53), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: zero_mean_key(8, "uniform"), "uniform"),
        (lambda: zero_mean_key(0), "at least 1"),
        (lambda: site_key(b"short", "conv1", 8), "searched for"),
        (lambda: key_from_bytes(b"", 3), "too few"),
    ],
)
def test_unfit_arguments_are_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()
