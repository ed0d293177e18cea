"""Teachers of a model hub, with the real client against a hub on loopback."""

import shutil

import hub_double
import huggingface_hub.constants
import pytest
from transformers import BertConfig, BertModel

from etd_ds.bert import checkpoint
from etd_ds.bert import hub as fetching
from etd_ds.contract import errors, teachers


@pytest.fixture
def hub(tmp_path, monkeypatch):
    served = hub_double.Hub(tmp_path / "hub")
    config = BertConfig(vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "hub" / "org" / "bert")
    (tmp_path / "hub" / "org" / "bert" / "evil.py").write_text("raise SystemExit")
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    yield served
    served.close()


def test_a_hub_id_is_pinned_to_its_commit_and_only_what_is_read_is_downloaded(hub, tmp_path):
    teacher = checkpoint.resolve("org/bert", tmp_path / "cache")
    assert teacher.reference == f"org/bert@{hub_double.COMMIT}"
    assert teacher.shape.hidden == 12
    assert sorted(path.name for path in teacher.folder.iterdir()) == ["config.json", "model.safetensors"]
    checkpoint.load_encoder(teacher.folder)
    # a pinned teacher that is in the cache needs no hub
    hub.close()
    again = checkpoint.resolve(teacher.reference, tmp_path / "cache")
    assert again == teacher


def test_a_teacher_in_several_files_is_found_in_the_cache_when_all_are_there(hub, tmp_path):
    folder = tmp_path / "hub" / "org" / "bert"
    (folder / "model.safetensors").unlink()
    config = BertConfig.from_pretrained(folder)
    BertModel(config).save_pretrained(folder, max_shard_size="2KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    teacher = checkpoint.resolve("org/bert", tmp_path / "cache")
    where = teachers.Hub("org/bert", hub_double.COMMIT)
    hub.asked.clear()
    assert fetching.fetch(where, tmp_path / "cache", weights=True) == teacher.folder
    assert hub.asked == []
    # one that is missing is downloaded again
    next(teacher.folder.glob("model-*.safetensors")).unlink()
    assert checkpoint.resolve(teacher.reference, tmp_path / "cache") == teacher
    assert hub.asked


def test_the_shape_is_known_without_the_weights(hub, tmp_path):
    assert checkpoint.shape_of("org/bert", tmp_path / "cache").layers == 1
    assert not any("safetensors" in path for path in hub.asked)


def test_what_is_no_bert_is_refused_before_its_weights_are_downloaded(hub, tmp_path):
    config = tmp_path / "hub" / "org" / "bert" / "config.json"
    config.write_text(config.read_text().replace('"bert"', '"llama"'))
    with pytest.raises(errors.TeacherError, match="model_type"):
        checkpoint.resolve("org/bert", tmp_path / "cache")
    assert not any("safetensors" in path for path in hub.asked)


def test_a_repository_with_pickled_weights_only_is_refused(hub, tmp_path):
    folder = tmp_path / "hub" / "org" / "bert"
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(errors.TeacherError, match=r"no model\.safetensors"):
        checkpoint.shape_of("org/bert", tmp_path / "cache")
    assert not any(path.endswith(".bin") for path in hub.asked)


def test_an_unknown_repository_and_a_hub_that_is_down_are_told_apart(hub, tmp_path):
    with pytest.raises(errors.TeacherError, match="the model hub has no org/nothing"):
        checkpoint.resolve("org/nothing", tmp_path / "cache")
    hub.close()
    with pytest.raises(errors.TeacherError, match="could not be fetched"):
        checkpoint.resolve("org/bert", tmp_path / "cache")
