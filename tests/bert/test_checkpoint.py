"""Reading checkpoints: every stock class, old names and shards are read; what is damaged or strange is refused."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from etd_ds.bert import checkpoint
from etd_ds.contract import errors, teachers
from etd_ds.data import tokenize

CLASSES = {"BertModel": BertModel, "BertForMaskedLM": BertForMaskedLM, "BertForPreTraining": BertForPreTraining}


def save(folder, kind="BertForPreTraining"):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        max_position_embeddings=16,
    )
    model = CLASSES[kind](config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "teacher")
    return tmp_path / "teacher"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    path.unlink()
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize("kind", CLASSES)
def test_each_stock_class_is_recognised_and_its_encoder_computes_the_same(tmp_path, kind):
    model = save(tmp_path, kind)
    weights = checkpoint.read_weights(tmp_path)
    assert weights.architecture == kind
    assert weights.ignored == ()
    bert = checkpoint.load_encoder(tmp_path)
    ids = torch.arange(10).view(2, 5)
    stock = model if kind == "BertModel" else model.bert
    torch.testing.assert_close(bert(ids).last_hidden_state, stock(ids).last_hidden_state, rtol=0, atol=0)
    assert not bert.training
    assert bert.config._attn_implementation == "sdpa"
    assert checkpoint.load_encoder(tmp_path, dtype=torch.float64).dtype == torch.float64


def test_old_layer_norm_names_a_stored_decoder_and_constants_are_read(folder):
    before = checkpoint.read_weights(folder).state

    def age(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["bert.embeddings.position_ids"] = torch.arange(16)[None]

    edit_weights(folder, age)
    after = checkpoint.read_weights(folder)
    assert after.parts == {"pooler", "mlm", "nsp"}
    assert after.state.keys() == before.keys()
    assert all(torch.equal(after.state[name], before[name]) for name in before)


def test_a_head_of_another_task_is_left_out_and_named(folder):
    edit_weights(folder, lambda tensors: tensors.update({"classifier.weight": torch.zeros(2, 12)}))
    assert checkpoint.read_weights(folder).ignored == ("classifier.weight",)


def test_shards_are_read_through_their_index(folder):
    whole = checkpoint.read_weights(folder).state
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in files.items():
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = checkpoint.read_weights(folder).state
    assert all(torch.equal(sharded[name], whole[name]) for name in whole)
    assert checkpoint.resolve(str(folder), folder).sha256 == checkpoint.resolve(str(folder), folder).sha256


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def drop(name):
    return lambda folder: edit_weights(folder, lambda tensors: tensors.pop(name))


def set_nan(folder):
    edit_weights(folder, lambda t: t["bert.encoder.layer.1.output.dense.weight"].view(-1)[5].fill_(float("nan")))


def set_integer(folder):
    edit_weights(folder, lambda t: t.update({"bert.pooler.dense.bias": torch.zeros(12, dtype=torch.int32)}))


def pickled_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(*names):
    def write(folder):
        (folder / "model.safetensors").unlink()
        text = json.dumps({"weight_map": dict(enumerate(names))})
        (folder / "model.safetensors.index.json").write_text(text)

    return write


def config(**changes):
    return lambda folder: edit_config(folder, **changes)


def no_config(folder):
    (folder / "config.json").unlink()


def bad_json(folder):
    (folder / "config.json").write_text("{")


def not_an_object(folder):
    (folder / "config.json").write_text("[1]")


BAD = {
    "truncated": (truncate, "corrupt or truncated"),
    "header": (garble_header, "corrupt or truncated"),
    "empty": (empty, "corrupt or truncated"),
    "missing tensor": (drop("bert.encoder.layer.1.attention.self.key.bias"), "lack encoder.layer.1"),
    "half an MLM head": (drop("cls.predictions.transform.dense.weight"), "lack cls.predictions.transform"),
    "shape": (config(intermediate_size=9), "intermediate.dense.weight is"),
    "more layers than config": (config(num_hidden_layers=1), "has not"),
    "fewer layers than config": (config(num_hidden_layers=10**9), "lack encoder.layer.2"),
    "NaN": (set_nan, "NaN"),
    "integers": (set_integer, "wanted|asks for floats"),
    "pickle": (pickled_only, "no model.safetensors"),
    "index outside": (index("../model.safetensors"), "plain"),
    "index absolute": (index("/etc/passwd"), "plain"),
    "index backslash": (index("a\\b.safetensors"), "plain"),
    "index missing file": (index("model-1-of-1.safetensors"), "missing"),
    "index empty": (index(), "names no file"),
    "no config": (no_config, "no config.json"),
    "config not JSON": (bad_json, "not JSON"),
    "config not an object": (not_an_object, "not a JSON object"),
    "remote code": (config(auto_map={"AutoModel": "evil--modeling.Evil"}), "remote code"),
    "attention kernel": (config(attn_implementation="kernels-community/evil"), "attention kernel"),
    "private attention kernel": (config(_attn_implementation="flash_attention_2"), "attention kernel"),
    "another model": (config(model_type="roberta"), "model_type"),
    "relative positions": (config(position_embedding_type="relative_key"), "position_embedding_type"),
    "decoder": (config(is_decoder=True), "is_decoder"),
    "untied": (config(tie_word_embeddings=False), "tied"),
    "activation": (config(hidden_act="os.system"), "hidden_act"),
    "activation with weights": (config(hidden_act="prelu"), "hidden_act"),
    "huge config": (config(note="x" * (17 << 20)), "too large"),
    "epsilon": (config(layer_norm_eps=float("nan")), "layer_norm_eps"),
    "heads": (config(num_attention_heads=5), "not divisible"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_a_teacher_error_that_says_what_is_wrong(folder, case):
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(errors.TeacherError, match=message) as caught:
        checkpoint.load_encoder(folder)
    assert caught.value.field == "teacher"


@pytest.mark.parametrize(
    "case", ["pickle", "index outside", "no config", "remote code", "another model", "attention kernel"]
)
def test_what_the_config_and_file_names_tell_is_refused_without_reading_weights(folder, case):
    BAD[case][0](folder)
    (folder / "model.safetensors").exists() and (folder / "model.safetensors").write_bytes(b"unread")
    with pytest.raises(errors.TeacherError, match=BAD[case][1]):
        checkpoint.shape_of(str(folder), folder)


def test_a_config_field_that_we_do_not_know_changes_nothing(folder):
    edit_config(folder, _name_or_path="/somewhere", torch_dtype="float16", quantization_config={"load_in_4bit": True})
    assert checkpoint.load_encoder(folder).dtype == torch.float32


def test_an_unknown_teacher_names_the_three_forms(tmp_path):
    with pytest.raises(errors.TeacherError, match="hub id"):
        checkpoint.resolve("no such thing", tmp_path)


def test_the_trained_student_keeps_its_files_and_its_tied_decoder(folder, tmp_path):
    teacher = teachers.embedded_folder()
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(teacher / name, folder / name)
    init, student = tmp_path / "init", tmp_path / "student"
    init.mkdir()
    student.mkdir()
    checkpoint.write(
        init,
        teacher=folder,
        tokens=tokenize.open_tokenizer(teacher),
        student=checkpoint.shape_of(str(folder), tmp_path),
        weights=checkpoint.read_weights(folder),
        manifest={"layers": []},
        card="a card",
    )
    bert = checkpoint.load_encoder(init)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.5)
    kept = "encoder.layer.0.output.dense.weight"  # as of what no loss reaches, nothing is said of it
    learned = {name: tensor for name, tensor in bert.state_dict().items() if name != kept}
    checkpoint.save_student(student, init=init, encoder=learned)
    states = [checkpoint.read_weights(folder).state for folder in (init, student)]
    assert [name for name in learned if torch.equal(states[0][name], states[1][name])] == []
    assert torch.equal(states[0][kept], states[1][kept])
    assert sorted(p.name for p in student.iterdir()) == sorted(p.name for p in init.iterdir())
    model, info = BertForPreTraining.from_pretrained(student, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.cls.predictions.decoder.weight, bert.embeddings.word_embeddings.weight)
    assert torch.equal(model.cls.predictions.bias, checkpoint.read_weights(folder).state["cls.predictions.bias"])
