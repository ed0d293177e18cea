"""Extraction end to end: spec in, stock folder out."""

import hashlib
import json

import pytest
import safetensors.torch
import small_teacher
import torch
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, BertForPreTraining, BertModel

from etd_ds import data, flops
from etd_ds.bert import checkpoint
from etd_ds.contract import errors, events, flags, rundir, spec, teachers
from etd_ds.data import tokenize
from etd_ds.distill.module import Distiller, Guide
from etd_ds.losses import OBJECTIVES, Totals
from etd_ds.stages import calibrate, extract

MODES = ["rand", "impt", "none"]


def job(teacher, corpus, **fields) -> spec.JobSpec:
    given = {"layers": 2, "hidden": 6, "ffn": 8, "seq_length": 16, "importance_sentences": 40, "mlm_head_steps": 3}
    return spec.JobSpec(**(given | {"teacher": str(teacher), "corpus": str(corpus)} | fields))


def new_run(root, asked: spec.JobSpec) -> rundir.RunDir:
    run = rundir.RunDir(root)
    rundir.publish_json(run.job, asked)
    return run


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_the_student_is_of_its_teachers_class_and_loads_without_a_missing_or_strange_key(tmp_path, corpus, kind, mode):
    teacher = small_teacher.write(tmp_path / "teacher", kind.__name__)
    run = new_run(tmp_path / "run", job(teacher, corpus, mode=mode))
    plan = extract.extract(run, cache=tmp_path / "cache")
    assert sorted(path.name for path in run.init.iterdir()) == sorted(rundir.STUDENT_FILES)
    model, info = kind.from_pretrained(run.init, output_loading_info=True)
    assert not any(info.values())
    assert model.config.architectures == [kind.__name__]
    assert plan == run.read_plan()
    assert plan.student_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert plan.teacher_layers == (() if mode == "none" else (2, 3))
    if kind is not BertModel:
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    tokenizer = AutoTokenizer.from_pretrained(run.init)
    ids = tokenizer("The king ruled a large town." * 3).input_ids
    assert ids[0] == 2
    assert ids[-1] == 3
    assert small_teacher.VOCABULARY.index("king") in ids
    assert tokenizer.model_max_length == 32
    states = [(event.stage, event.state) for event in events.read(run.events) if isinstance(event, events.Stage)]
    assert states == [("extract", "start"), ("extract", "done")]


@pytest.mark.parametrize("mode", ["rand", "impt"])
def test_the_manifest_says_which_teacher_values_stand_where(tmp_path, teacher, corpus, mode):
    run = new_run(tmp_path / "run", job(teacher, corpus, mode=mode))
    extract.extract(run, cache=tmp_path / "cache")
    manifest = json.loads((run.init / "extraction.json").read_text())
    mine, theirs = (checkpoint.read_weights(folder).state for folder in (run.init, teacher))
    hidden = manifest["hidden"]
    assert hidden == sorted(hidden)
    assert torch.equal(
        mine["embeddings.word_embeddings.weight"], theirs["embeddings.word_embeddings.weight"][:, hidden]
    )
    for m, layer in enumerate(manifest["layers"]):
        from_layer = f"encoder.layer.{layer['teacher_layer'] - 1}."
        own = f"encoder.layer.{m}."
        rows = layer["heads"]
        name = "attention.self.key.weight"
        assert torch.equal(mine[own + name], theirs[from_layer + name][rows][:, hidden])
        name = "output.dense.weight"
        assert torch.equal(mine[own + name], theirs[from_layer + name][hidden][:, layer["ffn"]])
    assert manifest["teacher"]["sha256"] == hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest()
    assert (manifest["scores"] is None) == (mode == "rand")


def test_a_student_tells_no_path_of_this_machine(tmp_path, teacher, corpus):
    run = new_run(tmp_path / "run", job(teacher, corpus))
    extract.extract(run, cache=tmp_path / "cache")
    for name in ("README.md", "extraction.json", "config.json", "tokenizer_config.json"):
        text = (run.init / name).read_text()
        assert str(tmp_path.parent) not in text
        assert str(teacher) not in text
        assert str(corpus) not in text


def test_an_extracted_run_is_not_extracted_again(tmp_path, teacher, corpus):
    run = new_run(tmp_path / "run", job(teacher, corpus, mode="rand"))
    first = extract.extract(run, cache=tmp_path / "cache")
    stamp = (run.init / "model.safetensors").stat().st_mtime_ns
    assert extract.extract(run, cache=tmp_path / "cache") == first
    assert (run.init / "model.safetensors").stat().st_mtime_ns == stamp
    assert [e.state for e in events.read(run.events) if isinstance(e, events.Stage)] == ["start", "done", "skipped"]


def test_the_same_request_gives_the_same_bytes(tmp_path, teacher, corpus):
    for mode in MODES:
        digests = []
        for name in ("one", "two"):
            folder = tmp_path / mode / name
            extract.cut(job(teacher, corpus, mode=mode), folder, cache=tmp_path / mode / f"cache-{name}")
            digests.append([rundir.digest(folder / file).sha256 for file in rundir.STUDENT_FILES])
        assert digests[0] == digests[1]


def test_without_hidden_consistency_the_student_loads_and_says_so(tmp_path, teacher, corpus):
    asked = job(teacher, corpus, hidden_consistency=False)
    extract.cut(asked, tmp_path / "out", cache=tmp_path / "cache")
    manifest = json.loads((tmp_path / "out" / "extraction.json").read_text())
    assert manifest["hidden_consistency"] is False
    assert {"hidden_attention", "hidden_ffn"} <= manifest["layers"][0].keys()
    checkpoint.load_encoder(tmp_path / "out")


BAD_JOBS = {
    "layers": ({"layers": 4}, errors.ShapeError, "layers"),
    "hidden": ({"hidden": 7}, errors.ShapeError, "hidden"),
    "huge hidden": ({"hidden": 10**9}, errors.ShapeError, "hidden"),
    "ffn": ({"ffn": 25}, errors.ShapeError, "ffn"),
    "seq_length": ({"seq_length": 33}, errors.ShapeError, "seq_length"),
    "layer list": ({"layer_selection": [1, 9]}, errors.ShapeError, "layer_selection"),
    "teacher": ({"teacher": "/nowhere at all"}, errors.TeacherError, "teacher"),
    "corpus": ({"corpus": "/nowhere at all.txt"}, errors.CorpusError, "corpus"),
    "sentences": ({"importance_sentences": 10_000}, errors.CorpusError, "corpus"),
}


@pytest.mark.parametrize("case", BAD_JOBS)
def test_a_bad_request_names_its_field_and_leaves_nothing_behind(tmp_path, teacher, corpus, case):
    fields, kind, field = BAD_JOBS[case]
    asked = {"teacher": str(teacher), "corpus": str(corpus)} | fields
    run = new_run(tmp_path / "run", job(**asked))
    with pytest.raises(kind) as caught:
        extract.extract(run, cache=tmp_path / "cache")
    assert caught.value.field == field
    assert not run.init.exists()
    assert not run.plan.exists()
    assert not [path for path in run.root.iterdir() if path.suffix == ".tmp"]


def test_a_damaged_teacher_leaves_nothing_behind(tmp_path, corpus):
    teacher = small_teacher.write(tmp_path / "teacher")
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    run = new_run(tmp_path / "run", job(teacher, corpus))
    with pytest.raises(errors.TeacherError, match="corrupt or truncated"):
        extract.extract(run, cache=tmp_path / "cache")
    assert not run.init.exists()
    assert not run.plan.exists()


@pytest.mark.slow
def test_the_packaged_teacher_kept_whole_is_itself_and_halved_loads_in_stock_transformers(tmp_path):
    folder = teachers.embedded_folder()
    extract.cut(spec.JobSpec(layers=6, hidden=384, mode="rand"), tmp_path / "whole", cache=tmp_path / "cache")
    mine, theirs = (safetensors.torch.load_file(one / "model.safetensors") for one in (tmp_path / "whole", folder))
    theirs.pop("embeddings.position_ids")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    made = extract.cut(spec.JobSpec(layers=3, hidden=192, mode="rand"), tmp_path / "half", cache=tmp_path / "cache")
    model, info = AutoModel.from_pretrained(tmp_path / "half", output_loading_info=True)
    assert not any(info.values())
    assert made.student_parameters == flops.parameters(made.student) == model.num_parameters()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "half")
    text = "The teacher's tokenizer cut here at 128 tokens, hello! " * 20
    ids, whole = tokenizer(text).input_ids, AutoTokenizer.from_pretrained(folder)(text, truncation=False, padding=False)
    assert ids == whole.input_ids
    assert len(ids) > 200
    assert tokenizer.model_max_length == 512


def _resemblance(folder, sentences) -> float:
    """Mean cosine of mean-pooled embeddings, teacher against student."""
    tokenizer = AutoTokenizer.from_pretrained(teachers.embedded_folder())
    feed = tokenizer(sentences, padding=True, truncation=True, max_length=64, return_tensors="pt")
    pooled = []
    for one in (teachers.embedded_folder(), folder):
        with torch.no_grad():
            hidden_BSH = checkpoint.load_encoder(one)(**feed).last_hidden_state
        mask_BS1 = feed["attention_mask"][..., None]
        pooled.append((hidden_BSH * mask_BS1).sum(1) / mask_BS1.sum(1))
    return torch.cosine_similarity(*pooled).mean().item()


@pytest.mark.slow
def test_important_ffn_neurons_matter_more_than_drawn_ones_and_those_more_than_the_least(tmp_path):
    """Half of each FFN, all else kept; on sentences that were not scored."""
    held_out = data.sentences("embedded", 1000)[-64:]
    found = []
    for fields in ({"mode": "impt"}, {"mode": "rand"}, {"mode": "impt", "reverse": ["ffn"]}):
        asked = spec.JobSpec(
            layers=6, hidden=384, ffn=768, importance_sentences=100, mlm_head_steps=3, seq_length=128, **fields
        )
        out = tmp_path / str(len(found))
        extract.cut(asked, out, cache=tmp_path / "cache")
        found.append(_resemblance(out, held_out))
    assert found[0] > found[1] + 0.02
    assert found[1] > found[2] + 0.02


@pytest.mark.slow
def test_other_thread_counts_choose_the_same_neurons_of_the_packaged_teacher(tmp_path):
    """Sums in fp32 may round apart by 1e-7; which neurons are kept must not."""
    asked, kept = spec.JobSpec(layers=3, hidden=192, importance_sentences=100, mlm_head_steps=3), []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        out = tmp_path / f"{threads}"
        extract.cut(asked, out, cache=tmp_path / f"cache-{threads}")
        manifest = json.loads((out / "extraction.json").read_text())
        kept.append((manifest["hidden"], manifest["layers"]))
    assert kept[0] == kept[1]


@pytest.fixture
def little_text(monkeypatch):
    monkeypatch.setattr(calibrate, "TOKENS", 4096)
    monkeypatch.setattr(calibrate, "TRIAL_TOKENS", 512)


@pytest.mark.slow
@pytest.mark.usefixtures("little_text")
@pytest.mark.parametrize("objective", ["last_layer", "tinybert", "minilm"])
def test_a_refit_student_starts_nearer_to_its_teacher(tmp_path, objective):
    asked = {"layers": 3, "hidden": 96, "mode": "rand", "seq_length": 64, "objective": objective}
    losses = []
    for refit in ("none", "all"):
        run = new_run(tmp_path / refit, spec.JobSpec(**asked, refit=refit))
        extract.extract(run, cache=tmp_path / "cache")
        AutoModel.from_pretrained(run.init, add_pooling_layer=False)
        losses.append(held_out_loss(run, objective))
        assert run.projection.exists() == (refit == "all" and objective != "minilm")
        manifest = json.loads((run.init / "extraction.json").read_text())
        assert ("refit" in manifest) == (refit == "all")
    assert manifest["refit"]["tokens"] >= calibrate.TOKENS
    assert losses[1] < 0.8 * losses[0]  # at its real size of text it comes nearer


def test_a_damaged_projection_is_refused_with_the_cure(tmp_path):
    run = rundir.RunDir(tmp_path)
    assert calibrate.read(run) is None
    run.init.mkdir()
    run.projection.write_bytes(b"no tensors at all")
    with pytest.raises(errors.RunFolderError, match=r"projection.safetensors is damaged .*; extract the student again"):
        calibrate.read(run)


def held_out_loss(run: rundir.RunDir, objective: str) -> float:
    """Of the embedded teacher's student as a trainer would begin with it, on text that no refit sees."""
    teacher = checkpoint.load_encoder(teachers.embedded_folder())
    tokenizer = tokenize.open_tokenizer(teachers.embedded_folder())
    packed = calibrate.pack([tokenizer.encode(line).ids for line in data.held_out.sentences("embedded", 20)])
    student = checkpoint.load_encoder(run.init)
    distiller = Distiller(
        student, OBJECTIVES[objective](3, 6), teacher_hidden=384, dropout=0.0, seed=0, fitted=calibrate.read(run)
    )
    totals = Totals(len(packed.ids_T), sum(n * n for n in packed.segments.lengths))
    with torch.no_grad():
        return float(distiller(packed, Guide(teacher, distiller.objective)(packed), totals)[0])


@pytest.mark.slow
@pytest.mark.usefixtures("little_text")
def test_measured_layers_are_the_best_of_those_tried_and_end_with_the_teachers_last(tmp_path):
    run = new_run(
        tmp_path / "run", spec.JobSpec(layers=2, hidden=48, mode="rand", seq_length=32, layer_selection="measured")
    )
    found = extract.extract(run, cache=tmp_path / "cache").teacher_layers
    tried = json.loads((run.init / "extraction.json").read_text())["layers_tried"]["losses"]
    assert min(tried, key=tried.get) == ",".join(map(str, found))
    assert found[-1] == 6
    # no exchange of one layer is left untried
    assert {",".join(map(str, layers)) for layers in calibrate.neighbours(found, 6)} <= tried.keys()


def test_a_refit_needs_text_that_is_never_held_out(tmp_path, teacher, corpus):
    run = new_run(tmp_path / "run", job(teacher, corpus, mode="rand", refit="outputs"))
    with pytest.raises(errors.CorpusError, match="refit: wanted 32768 tokens") as caught:
        extract.extract(run, cache=tmp_path / "cache")
    assert caught.value.field == "refit"
    assert not run.init.exists()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mode": "none", "refit": "all"}, "refit"),
        ({"hidden_consistency": False, "refit": "outputs"}, "refit"),
        ({"objective": "minilm", "refit": "projection"}, "refit"),
        ({"mode": "none", "layer_selection": "measured"}, "layer_selection"),
    ],
)
def test_a_refit_of_nothing_cut_is_refused(fields, named):
    with pytest.raises(errors.EtdError, match=named):
        flags.parse({"layers": 2, "hidden": 96} | fields)
