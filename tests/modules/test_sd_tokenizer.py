import pytest
from transformers import CLIPTokenizer

from lightning_privacy.modules.stable_diffusion.tiny_tokenizer import build_tokenizer

CAPTIONS = [f"a photo of person {i}" for i in range(40)]


def test_words_of_the_captions_are_single_tokens():
    assert build_tokenizer(CAPTIONS).tokenize("A photo of person 21") == [
        "a</w>", "photo</w>", "of</w>", "person</w>", "2</w>", "1</w>",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "Zoë's 北京 😀 xyzzy!", "photography\tof\npersons", "naïve <3 \x7f"])
def test_round_trip_through_files_and_no_unknown_token(tmp_path, text):
    made = build_tokenizer(CAPTIONS, folder=tmp_path)
    read = CLIPTokenizer.from_pretrained(tmp_path)
    options = {"padding": "max_length", "truncation": True, "max_length": 24}
    ids = made(text, **options).input_ids
    assert read(text, **options).input_ids == ids and read.model_max_length == 24
    words = ids[1 : ids.index(made.eos_token_id)]
    assert ids[0] == made.bos_token_id and made.unk_token_id not in words
    assert max(ids) < len(made) == len(read)
    if text.isascii():
        # Clip normalises case and white space, and its decoder puts a space after each word.
        assert "".join(read.decode(words).split()) == "".join(text.lower().split())


def test_two_builds_are_equal_whatever_the_order():
    assert build_tokenizer(CAPTIONS).get_vocab() == build_tokenizer(CAPTIONS[::-1]).get_vocab()


def test_a_bounded_vocabulary_still_knows_every_byte():
    made = build_tokenizer(CAPTIONS, vocab_size=518)
    assert 514 < len(made) <= 518 < len(build_tokenizer(CAPTIONS))
    assert made.unk_token_id not in made.convert_tokens_to_ids(made.tokenize("Ünïcode person"))
