"""One launch command for the shell, the service and a cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

from etd_ds.contract import errors, launch, rundir, spec, teachers

RUN = rundir.RunDir(Path("/runs/x"))


def test_the_command_names_the_folder_the_config_and_the_ranks():
    argv = launch.train_argv(RUN, spec.JobSpec(layers=3, hidden=192, gpus=2), cache=Path("/c"), master_port=29000)
    assert argv[argv.index("--num_accelerators") + 1] == "2"
    assert argv[argv.index("--master_port") + 1] == "29000"
    assert argv[argv.index("--run") + 1] == "/runs/x"
    assert argv[argv.index("--deepspeed") + 1].endswith("ds_configs/zero2.json")
    assert Path(argv[argv.index("--deepspeed") - 1]).is_file()


def test_several_nodes_need_a_hostfile():
    job = spec.JobSpec(layers=3, hidden=192, gpus=2, nodes=2)
    with pytest.raises(ValueError, match="hostfile"):
        launch.train_argv(RUN, job, cache=Path("/c"))
    argv = launch.train_argv(RUN, job, cache=Path("/c"), hostfile=Path("/h"))
    assert argv[argv.index("--num_nodes") + 1] == "2"


def test_the_contract_imports_no_heavy_library():
    code = "import sys, etd_ds.contract.launch, etd_ds.contract.flags, etd_ds.contract.teachers; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "transformers", "deepspeed", "fastapi"} & set(loaded)


def test_teacher_addresses(tmp_path):
    assert teachers.locate(str(tmp_path)) == tmp_path.resolve()
    hub = teachers.locate("google-bert/bert-base-uncased")
    assert isinstance(hub, teachers.Hub)
    assert hub.commit
    assert len(hub.commit) == 40
    assert teachers.parse_hub("org/name") == teachers.Hub("org/name", None)
    assert teachers.parse_hub("org/name@" + "a" * 40) == teachers.Hub("org/name", "a" * 40)


@pytest.mark.parametrize(
    "bad",
    ["nonsense", "/no/such/folder", "~nobody-here/x", "x" * 400, "a/b/c", "../up", "a/..", "org/name@main", "a/b\n"],
)
def test_what_is_no_address_is_refused(bad):
    assert teachers.parse_hub(bad) is None
    with pytest.raises(errors.TeacherError):
        teachers.locate(bad)


def test_the_embedded_teacher_is_a_hugging_face_folder():
    folder = teachers.locate(teachers.EMBEDDED)
    assert isinstance(folder, Path)
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= {p.name for p in folder.iterdir()}
