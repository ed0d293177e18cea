import json
import shutil
from pathlib import Path

import pytest

from etd_ds.contract import errors, teachers
from etd_ds.data import tokenize

TEACHER = teachers.embedded_folder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(TEACHER / name, tmp_path / name)
    return tmp_path


def test_never_pads_and_never_truncates() -> None:
    tokenizer = tokenize.open_tokenizer(TEACHER)
    assert len(tokenizer.encode("hello").ids) == 3
    assert len(tokenizer.encode("word " * 5000).ids) == 5002


def test_spelled_out_special_tokens_are_ordinary_text() -> None:
    tokenizer = tokenize.open_tokenizer(TEACHER)
    ids = tokenizer.encode("a [SEP] b [MASK]", add_special_tokens=False).ids
    assert not set(ids) & tokenize.special(tokenizer).ids


def test_a_word_list_alone_is_the_same_tokenizer(folder: Path) -> None:
    whole = tokenize.open_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    rebuilt = tokenize.open_tokenizer(folder)
    for text in ("Hello, World!", "naïve café 東京 №5", "supercalifragilistic [SEP] xyzzy"):
        assert rebuilt.encode(text).ids == whole.encode(text).ids
    assert tokenize.special(rebuilt) == tokenize.special(whole)


def test_digest_is_that_of_the_content(folder: Path) -> None:
    first = tokenize.digest(tokenize.open_tokenizer(TEACHER))
    copy = folder / "copy"
    copy.mkdir()
    tokenize.open_tokenizer(folder).save(str(copy / "tokenizer.json"), pretty=False)
    assert tokenize.digest(tokenize.open_tokenizer(copy)) == first


def test_a_tokenizer_with_more_words_than_the_weights_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}))
    with pytest.raises(errors.TeacherError, match=r"ids up to 30521.*vocab_size 1000"):
        tokenize.open_tokenizer(folder)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": 3}'])
def test_a_damaged_tokenizer_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(errors.TeacherError, match=r"tokenizer\.json"):
        tokenize.open_tokenizer(folder)


def test_no_tokenizer_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.TeacherError, match=r"tokenizer\.json or a vocab\.txt"):
        tokenize.open_tokenizer(tmp_path)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_words_may_be_characters_at_which_unicode_ends_a_line(folder: Path, ending: str) -> None:
    (folder / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\x0b", "\x85", "\u2028", "king"]
    (folder / "vocab.txt").write_bytes((ending.join(words) + ending).encode())
    assert tokenize.open_tokenizer(folder).get_vocab() == {word: index for index, word in enumerate(words)}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "vocab.txt"])
@pytest.mark.parametrize("content", [b"", b"{broken", b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_a_damaged_file_beside_the_weights_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(errors.TeacherError, match=rf"vocabulary lacks|its {name}") as caught:
        tokenize.open_tokenizer(folder)
    assert caught.value.field == "teacher"
