"""Keys of locked models: what they are made of, what they tell, and what they never tell."""

import copy
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lightning_privacy.editors import (
    Img2ImgEditor,
    LockKey,
    LockSecret,
    PixelShuffleEditor,
    check_same_key,
    published_prompts,
)
from lightning_privacy.editors.secret_entry import create_secret, read_secret
from lightning_privacy.errors import InputError, WrongKeyError
from lightning_privacy.secrets.secret_ref import SecretRef
from lightning_privacy.secrets.vault import KeyVault

PROMPT = "a very secret cubist sketch"
SEED = bytes(range(40, 72))


def key(prompt=PROMPT, seed=SEED, **settings):
    return LockKey("img2img", {"steps": 5, "alpha": 0.5, **settings}, LockSecret(prompt, seed))


def test_every_part_of_the_key_changes_the_fingerprint():
    marks = [key(), key(prompt="b"), key(seed=bytes(32)), key(steps=4), LockKey("other", key().settings, key().secret)]
    assert len({each.fingerprint() for each in marks}) == len(marks)
    assert key().fingerprint() == key().fingerprint() and len(key().fingerprint()) == 64


def test_a_seed_that_can_be_guessed_is_stretched():
    # not one hash away from the canonical text: the two forms must differ for the same bytes
    weak, strong = key(seed=b"short").fingerprint(), key(seed=b"short" * 8).fingerprint()
    assert weak != strong and key(seed=1024).fingerprint() == key(seed=1024).fingerprint()


@pytest.mark.parametrize("show", [repr, str, lambda k: f"{k}", lambda k: repr(k.secret), lambda k: repr(copy.copy(k))])
def test_a_key_shows_nothing_secret(show):
    assert PROMPT not in show(key()) and SEED.hex()[:8] not in show(key()) and "40, 41" not in show(key())


def test_a_secret_cannot_be_pickled_and_a_pickled_editor_has_none():
    with pytest.raises(InputError, match="cannot be pickled"):
        pickle.dumps(key())
    editor = Img2ImgEditor.with_secret(LockSecret(PROMPT, SEED))
    raw = pickle.dumps(editor)
    assert PROMPT.encode() not in raw and SEED not in raw
    with pytest.raises(InputError, match="has no key"):
        _ = pickle.loads(raw).secret
    assert copy.deepcopy(editor).fingerprint() == editor.fingerprint()
    assert PROMPT not in repr(editor) + str(editor.public())


def test_the_public_part_that_differs_is_named_and_the_secret_is_not():
    here, there = key(), key(steps=4, alpha=0.25)
    with pytest.raises(WrongKeyError, match="`steps` 4 and `alpha` 0.25, and this editor has 5 and 0.5"):
        check_same_key(there.public(), there.fingerprint(), here.public(), here.fingerprint(), "The checkpoint")
    other = key(seed=bytes(32))
    with pytest.raises(WrongKeyError, match="another secret") as refused:
        check_same_key(other.public(), other.fingerprint(), here.public(), here.fingerprint(), "The checkpoint")
    assert PROMPT not in str(refused.value) and SEED.hex()[:8] not in str(refused.value)
    check_same_key(here.public(), here.fingerprint(), here.public(), here.fingerprint(), "The checkpoint")


def test_a_vault_is_made_once_with_mode_0600(tmp_path):
    path = tmp_path / "private" / "lock.safetensors"
    ref = SecretRef(f"vault:{path}#prompt")
    assert create_secret(ref, "prompt") and not create_secret(ref, "prompt")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = read_secret(ref, "prompt")
    assert isinstance(first.seed, bytes) and len(first.seed) == 32 and first == read_secret(ref, "prompt")
    style = first.prompt.removeprefix("in the style of ")
    assert style in [p.prompt for p in published_prompts()]
    editor = Img2ImgEditor(key=str(ref))
    assert editor.fingerprint() == Img2ImgEditor(key=str(ref)).fingerprint()
    assert not Img2ImgEditor(key=str(ref), create=True).create_key()


def test_a_prompt_without_a_seed_has_the_released_one(tmp_path, monkeypatch):
    vault = KeyVault.create(tmp_path / "v.safetensors")
    vault.put("prompt", PROMPT)
    vault.put("drawn", PROMPT)
    vault.put("drawn/seed", torch.tensor(7))
    assert read_secret(SecretRef(f"vault:{vault.path}#prompt"), "prompt") == LockSecret(PROMPT, 1024)
    assert read_secret(SecretRef(f"vault:{vault.path}#drawn"), "prompt") == LockSecret(PROMPT, 7)
    monkeypatch.setenv("LOCK_PROMPT", PROMPT)
    assert read_secret(SecretRef("env:LOCK_PROMPT"), "prompt") == LockSecret(PROMPT, 1024)
    assert read_secret(SecretRef("env:LOCK_PROMPT"), "seed") == LockSecret(None, PROMPT.encode())


def test_what_is_no_place_of_a_secret_is_refused_without_being_repeated(tmp_path):
    for cls in (Img2ImgEditor, PixelShuffleEditor):
        with pytest.raises(InputError, match="no reference") as refused:
            cls(key=PROMPT)
        assert PROMPT not in str(refused.value)
    vault = KeyVault.create(tmp_path / "v.safetensors")
    vault.put_master("master")
    with pytest.raises(InputError, match="needs a prompt"):
        _ = Img2ImgEditor(key=f"vault:{vault.path}#master").secret
    with pytest.raises(InputError, match="There is no vault"):
        _ = Img2ImgEditor(key=f"vault:{tmp_path / 'none'}#master").secret
    with pytest.raises(InputError, match="has no key"):
        _ = Img2ImgEditor().secret


def test_the_published_prompts_are_all_there():
    prompts = published_prompts()
    assert len(prompts) == len({p.prompt for p in prompts}) == 70
    groups = {g: [p for p in prompts if p.group == g] for g in {p.group for p in prompts}}
    assert {g: len(found) for g, found in groups.items() if "object" in g} == {
        "object: irrelevant": 25,
        "object: relevant": 25,
    }
    # the means that the figure's transcription states
    assert sum(p.lp for p in groups["object: relevant"]) / 25 == pytest.approx(19.4, abs=0.1)
    assert sum(p.up for p in prompts if "style" in p.group) / 20 == pytest.approx(91.4, abs=0.1)
    assert min(p.lp for p in prompts) == 2.4 and all(p.lp < p.up for p in prompts)


def test_runs_that_begin_together_make_one_key(tmp_path):
    ref = SecretRef(f"vault:{tmp_path}/private/lock.safetensors#prompt")
    with ThreadPoolExecutor(4) as pool:  # each opens the lock's file anew, as another process would
        made = list(pool.map(lambda _: create_secret(ref, "prompt"), range(4)))
    assert sorted(made) == [False, False, False, True]
    assert set(KeyVault(tmp_path / "private/lock.safetensors").names()) == {"prompt", "prompt/seed"}
