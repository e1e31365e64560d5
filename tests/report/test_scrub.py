"""What may not leave with a dossier: secrets, names of users, ids of records."""

import pytest

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.scrub import check_releasable, scrub_settings, scrub_text

ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "apikey",
        "apiKey",
        "APIKey",
        "AWS_ACCESS_KEY_ID",
        "access_key_id",
        "authorization",
        "auth",
        "passwd",
        "pwd",
        "db_password",
        "credentials",
        "bearer",
        "client_secret_value",
        "hf_token",
        "secret_key",
        "keys",
        "key_seed",
        "private_key_file",
        "prompt",
        "vault_path",
    ],
)
def test_settings_under_the_name_of_a_secret_are_withheld(name):
    assert scrub_settings({name: "hunter2"}) == {name: "<withheld>"}


@pytest.mark.parametrize(
    "name", ["token_dim", "monitor", "author", "keyboard", "tokenizer", "lr", "key_dim", "saltiness"]
)
def test_other_settings_stay(name):
    assert scrub_settings({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://ann:hunter2@host/x", "https://<withheld>@host/x"),
        ("s3://AKIA:SEC/RET@bucket", "s3://<withheld>@bucket"),
        ("git+https://ghp_token@github.com/a/b", "git+https://<withheld>@github.com/a/b"),
        ("HF_TOKEN=hf_abc and more", "HF_TOKEN=<withheld> and more"),
        ("api_key=sk-123, lr=0.1", "api_key=<withheld>, lr=0.1"),
        ("Authorization: Bearer abc.def", "Authorization: <withheld>"),
        ("run --api-key sk-12 --lr 0.1", "run --api-key <withheld> --lr 0.1"),
        ('{"password": "two words"}', '{"password": <withheld>}'),
        ("http://h/a?token=abc&x=1", "http://h/a?token=<withheld>&x=1"),
        ("hf_abcdefghijklmnopqrst failed", "<withheld> failed"),
        ("AKIAABCDEFGHIJKLMNOP", "<withheld>"),
    ],
)
def test_secrets_inside_texts_are_withheld(text, clean):
    assert scrub_text(text) == clean and scrub_text(clean) == clean


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("file:///home/ann/x.zip", "<path>/x.zip"),
        ("file://srv/home/ann/x.zip", "<path>/x.zip"),
        ("images:/home/ann/x", "images:<path>/x"),
        ("PATH=/a/b:/home/ann/bin", "PATH=<path>/b:<path>/bin"),
        (r"\\srv\ann\x", "<path>/x"),
        (r"'\\\\srv\\ann\\x'", "'<path>/x'"),
        ("cannot open '/home/ann smith/x'", "cannot open '<path>/x'"),
        ("see /home/ann smith/x.pt now", "see <path>/x.pt now"),
        (r"C:\Users\ann smith\x.pt", "<path>/x.pt"),
        ("lives in /home/ann.", "lives in <path>."),
        ("-I/home/ann/inc", "-I<path>/inc"),
        ("~ann/data/x", "<path>/x"),
        ("it's /srv/a/b and ann's", "it's <path>/b and ann's"),
    ],
)
def test_names_of_users_in_paths_do_not_leave(text, clean):
    assert scrub_text(text) == clean and scrub_text(clean) == clean


@pytest.mark.parametrize("path", ["/home/ann", "/home/ann smith", r"C:\Users\ann", "~", "~ann"])
def test_a_home_as_a_setting_leaves_nothing(path):
    assert scrub_settings({"root": path}) == {"root": "<path>"}


def test_paths_in_the_names_of_settings_are_cut_too():
    assert scrub_settings({"/home/ann/x": 1}) == {"<path>/x": 1}


@pytest.mark.parametrize(
    "kept",
    [
        "at 1/n and and/or, https://arxiv.org/abs/2112.03570, runs/NAME, TPR / FPR, km/h, ~5/6",
        "the token of the model, a key, and a prompt",
        "https://example.org:8080/a/b and http://[::1]/a/b",
        "scikit-learn, sk-learn-like-names, lr=0.1, val/loss: 3",
    ],
)
def test_sentences_are_not_hurt(kept):
    assert scrub_text(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        ID,
        f"record:{ID}",
        f"id_{ID}",
        f"record-{ID}",
        f"{ID}.png",
        f"x{ID}y",
        ID.upper(),
        f"{ID[:12]}",
        f"see {ID[:20]}...",
    ],
)
def test_an_id_is_found_whatever_it_is_joined_to(text):
    with pytest.raises(InputError, match="would name 1 of the run's records"):
        check_releasable(f"worst: {text}!", [ID, "ab" * 32])


@pytest.mark.parametrize("name", ["member-000000000000000007", "patient.2020-01-01.seven"])
def test_ids_that_are_no_hashes_are_found_too(name):
    with pytest.raises(InputError, match="would name 1"):
        check_releasable(f"record:{name}.png", [name, "12"])


def test_other_hashes_and_numbers_pass():
    check_releasable(f"{'cd' * 32} {ID[:11]} 0.123456789012345 12", [ID, "12"])
