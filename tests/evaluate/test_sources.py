"""The one door to examples: distributed files, packages, and what is said when they are wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from etd_ds.contract import errors
from etd_ds.evaluate import door, offline, tasks
from etd_ds.evaluate.examples import Labelled

# header and one row of each file as GLUE distributes it: (folder, header, row, what is read)
GLUE = {
    "sst2": ("sentence\tlabel", 'a "quoted ending \t1', Labelled('a "quoted ending ', None, 1.0)),
    "cola": (None, "gj04\t0\t*\tThey drank the pub.", Labelled("They drank the pub.", None, 0.0)),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "1\t702876\t702977\tAmrozi accused his brother .\tHe did .",
        Labelled("Amrozi accused his brother .", "He did .", 1.0),
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t1n\tfiction\t(\t(\t(\t(\tIt ran .\tIt sat .\tneutral\tcontradiction",
        Labelled("It ran .", "It sat .", 2.0),
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        "0\tWhen?\tIn 1999.\tnot_entailment",
        Labelled("When?", "In 1999.", 1.0),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "7\t1\t2\tHow so?\tWhy so?\t0",
        Labelled("How so?", "Why so?", 0.0),
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain\tf\t2012\t1\tnone\tnone\tA plane.\tAn aeroplane.\t4.750",
        Labelled("A plane.", "An aeroplane.", 4.75),
    ),
}


def lay(folder: Path, task: tasks.Task, header: str | None, rows: list[str]) -> None:
    assert isinstance(task.source, tasks.Glue)
    home = folder / task.source.folder
    home.mkdir(parents=True, exist_ok=True)
    for name in ("train.tsv", *(file for _, file, _ in task.source.splits)):
        lines = ([header] if header else []) + rows
        (home / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", GLUE)
def test_glue_files_are_read_as_distributed(name: str, tmp_path: Path) -> None:
    header, row, wanted = GLUE[name]
    task = tasks.TASKS[name]
    lay(tmp_path, task, header, [row])
    material = door.open_task(task, tmp_path)
    assert list(material.train) == [wanted]
    assert task.decides in material.evaluations
    assert all(list(rows) == [wanted] for rows in material.evaluations.values())


def test_a_wrong_label_is_named_with_its_line(tmp_path: Path) -> None:
    lay(tmp_path, tasks.TASKS["qnli"], GLUE["qnli"][0], ["0\tWhen?\tNow.\tmaybe"])
    with pytest.raises(errors.EtdError, match=r"train\.tsv, line 2: wanted the label to be one of entailment"):
        door.open_task(tasks.TASKS["qnli"], tmp_path)


def test_a_few_broken_lines_are_passed_over_and_many_are_not(tmp_path: Path) -> None:
    task, (header, row, wanted) = tasks.TASKS["qqp"], GLUE["qqp"]
    lay(tmp_path, task, header, [row] * 300 + ["8\tbroken"])
    assert list(door.open_task(task, tmp_path).train) == [wanted] * 300
    lay(tmp_path, task, header, [row] * 3 + ["8\tbroken"])
    with pytest.raises(errors.EtdError, match="only 3 of 4 lines"):
        door.open_task(task, tmp_path)


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(errors.EtdError, match=r"train\.tsv: missing"):
        door.open_task(tasks.TASKS["sst2"], tmp_path)
    lay(tmp_path, tasks.TASKS["sst2"], "text\tlabel", ["x\t1"])
    with pytest.raises(errors.EtdError, match=r"lacks \['sentence'\]"):
        door.open_task(tasks.TASKS["sst2"], tmp_path)
    with pytest.raises(errors.EtdError, match="not a folder"):
        door.open_task(tasks.TASKS["sst2"], tmp_path / "nowhere")


def squad(folder: Path, answers: list[dict[str, object]]) -> None:
    row = {"id": "1", "question": "Where?", "answers": answers}
    whole = {"data": [{"paragraphs": [{"context": "In Łódź, 🎬 and Łódź.", "qas": [row]}]}]}
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (folder / name).write_text(json.dumps(whole), encoding="utf-8")


def test_squad_answers_must_stand_where_they_say(tmp_path: Path) -> None:
    squad(tmp_path, [{"text": "Łódź", "answer_start": 3}, {"text": "Łódź", "answer_start": 15}])
    (question,) = door.open_task(tasks.TASKS["squad"], tmp_path).train
    assert [answer.start for answer in question.answers] == [3, 15]  # type: ignore[union-attr]
    squad(tmp_path, [{"text": "Łódź", "answer_start": 4}])
    with pytest.raises(errors.EtdError, match="does not stand at character 4"):
        door.open_task(tasks.TASKS["squad"], tmp_path)
    squad(tmp_path, [])
    with pytest.raises(errors.EtdError, match=r"wanted SQuAD v1\.1, not v2"):
        door.open_task(tasks.TASKS["squad"], tmp_path)
    (tmp_path / "train-v1.1.json").write_text("[]")
    with pytest.raises(errors.EtdError, match=r"not in SQuAD v1\.1's format"):
        door.open_task(tasks.TASKS["squad"], tmp_path)


# scores can be compared only while these stand: a change needs a dated line in docs/LOG.md
PINNED = {"wiki_topic": "89dc647eec13", "wiki_pair": "90d9279c7060", "wiki_span": "33daa2f0acfc"}


@pytest.mark.parametrize("name", PINNED)
def test_offline_tasks_are_split_by_title_and_do_not_move(name: str) -> None:
    material = door.open_task(tasks.TASKS[name], None)
    assert material.sha256().startswith(PINNED[name])
    assert len(material.train) > 4000
    assert all(len(rows) > 500 for rows in material.evaluations.values())
    # what identifies an article: its summary, or the three summaries that it is looked for in
    parts = [
        {row.context if name == "wiki_span" else (row.b or row.a) for row in rows}  # type: ignore[union-attr]
        for rows in (material.train, *material.evaluations.values())
    ]
    assert not any(a & b for a, b in itertools.combinations(parts, 2))


def test_wiki_span_answers_are_mentions_of_one_title() -> None:
    for question in door.open_task(tasks.TASKS["wiki_span"], None).evaluations["test"]:
        assert len({answer.text for answer in question.answers}) == 1  # type: ignore[union-attr]
        for answer in question.answers:  # type: ignore[union-attr]
            assert question.context[answer.start :].startswith(answer.text)  # type: ignore[union-attr]


def test_a_missing_or_altered_archive_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(errors.EtdError, match="pip download"):
        door.open_task(tasks.TASKS["movie_sst2"], tmp_path)
    (tmp_path / offline.VADER).write_bytes(b"other")
    with pytest.raises(errors.EtdError, match="not the released one"):
        door.open_task(tasks.TASKS["movie_sst2"], tmp_path)


NOUNS = """  1 a licence, which is no synset
00000001 03 n 01 entity 0 000 | that which is
00000002 03 n 01 tool 0 001 @ 00000001 n 0000 | an implement that is held in the hand and used
00000003 03 n 01 toy 0 001 @ 00000001 n 0000 | an implement made for nothing but play
{rows}"""
ROW = (
    "{key:08} 06 n 02 small_thing{key} 0 gadget 1 002 #p 00000009 n 0000 @ 00000002 n 0000 "
    '| a thing number {key} that cuts wood well; "he took it"'
)


def test_wordnet_pairs_a_definition_with_its_parent_and_with_the_parents_sibling(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS.format(rows="\n".join(ROW.format(key=key) for key in range(10, 90))))
    material = door.open_task(tasks.TASKS["wordnet_isa"], tmp_path)
    rows = [*material.train, *material.evaluations["dev"], *material.evaluations["test"]]
    assert len(rows) > 20
    for right, wrong in zip(rows[::2], rows[1::2], strict=True):
        assert right.a == wrong.a  # type: ignore[union-attr]
        assert (right.label, wrong.label) == (1.0, 0.0)  # type: ignore[union-attr]
        word = right.a.split(" is ")[0]  # type: ignore[union-attr]
        assert right.a == f"{word} is a thing number {word[13:]} that cuts wood well."  # type: ignore[union-attr]
        assert right.b == f"{word} is a kind of tool."  # type: ignore[union-attr]
        assert wrong.b == f"{word} is a kind of toy."  # type: ignore[union-attr]


def test_a_damaged_wordnet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.EtdError, match="wordnet-base"):
        door.open_task(tasks.TASKS["wordnet_isa"], tmp_path)
    (tmp_path / "data.noun").write_text("not a synset")
    with pytest.raises(errors.EtdError, match="not in WordNet 3's format"):
        door.open_task(tasks.TASKS["wordnet_isa"], tmp_path)


def test_limits_thin_every_split_evenly() -> None:
    material = door.open_task(tasks.TASKS["wiki_topic"], None)
    few = material.limited(50, 20)
    assert len(few.train) == 50
    assert all(len(rows) == 20 for rows in few.evaluations.values())
    assert len({row.label for row in few.train}) > 5  # type: ignore[union-attr]
    assert material.limited(None, None).sha256() == material.sha256()
    assert few.sha256() != material.sha256()


def test_groups_stand_for_their_tasks_and_an_unknown_name_lists_them() -> None:
    assert [task.name for task in tasks.named(["sst2", "paper"])][:2] == ["sst2", "mnli"]
    assert len(tasks.named(["paper"])) == 8
    with pytest.raises(errors.EtdError, match="groups paper, glue, offline, got 'rte'"):
        tasks.named(["rte"])
