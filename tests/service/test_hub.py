"""Unmodified Hugging Face clients download from a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cutting_proxy import CuttingProxy
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from server_process import Server

from etd_ds.contract import rundir
from service.client import Client
from service.database import Database
from service.keys import SCOPES, Keys

SMALL = {"layers": 3, "hidden": 192, "steps": 2}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A server with keys and one finished student: (server, secrets, repository, job)."""
    root = tmp_path_factory.mktemp("hub")
    (root / "data").mkdir()
    database = Database(f"sqlite:///{root / 'data' / 'service.db'}")
    database.create()
    keys = Keys(database)
    secrets = {"a": keys.create("a", "a", SCOPES)[0], "b": keys.create("b", "b", SCOPES)[0]}
    secrets["weak"] = keys.create("weak", "a", ["jobs:read"])[0]
    database.close()
    server = Server(root, key=secrets["a"]).start()
    job = server.client.wait(server.client.create(SMALL)["id"])
    yield server, secrets, f"students/{job['id']}", job
    server.client.close()
    server.end()


def endpoint(hub, who="a"):
    server, secrets, _, _ = hub
    return {"endpoint": f"{server.url}/hf", "token": secrets.get(who, False if who == "" else who)}


def test_download_one_file_and_all(hub, tmp_path):
    server, _, repo, job = hub
    one = hf_hub_download(repo, "config.json", cache_dir=tmp_path, **endpoint(hub))
    assert Path(one).read_bytes() == (server.run(job["id"]) / "student" / "config.json").read_bytes()
    folder = Path(snapshot_download(repo, cache_dir=tmp_path, **endpoint(hub)))
    for name, digest in job["result"]["files"].items():
        assert rundir.digest(folder / name).sha256 == digest["sha256"]
    init = Path(snapshot_download(repo, revision="init", cache_dir=tmp_path, **endpoint(hub)))
    assert (init / "config.json").read_text() == "{}"


def test_too_many_paths_at_once_are_refused(hub):
    server, secrets, repo, _ = hub
    address = f"{server.url}/hf/api/models/{repo}/paths-info/main"
    asked = {"headers": {"Authorization": f"Bearer {secrets['a']}"}, "data": {"paths": ["config.json"] * 1001}}
    assert httpx.post(address, **asked).status_code == 413


def test_a_kept_checkpoint_is_a_revision(hub, tmp_path):
    _, _, repo, _ = hub
    one = hf_hub_download(repo, "config.json", revision="step-2", cache_dir=tmp_path, **endpoint(hub))
    assert Path(one).read_text() == "step-2"
    branches = HfApi(**endpoint(hub)).list_repo_refs(repo).branches
    assert {branch.name for branch in branches} == {"main", "init", "step-2"}
    assert len({branch.target_commit for branch in branches}) == 3


def test_looking_around(hub):
    _, _, repo, job = hub
    api = HfApi(**endpoint(hub))
    info = api.model_info(repo, files_metadata=True)
    assert {file.rfilename: file.size for file in info.siblings} == {
        name: digest["size"] for name, digest in job["result"]["files"].items()
    }
    assert set(api.list_repo_files(repo)) == set(job["result"]["files"])
    assert api.file_exists(repo, "config.json")
    assert not api.file_exists(repo, "nothing.json")
    assert api.revision_exists(repo, info.sha)
    assert not api.revision_exists(repo, "0" * 40)
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).branches}["main"] == info.sha
    assert api.get_paths_info(repo, paths=["config.json", "nothing"])[0].path == "config.json"
    weights = next(one for one in api.list_repo_tree(repo) if one.path == "model.safetensors")
    assert weights.lfs.sha256 == job["result"]["files"]["model.safetensors"]["sha256"]
    assert api.whoami()["name"] == "a"
    metadata = api.get_safetensors_metadata(repo)
    assert list(metadata.weight_map) == ["w"]


def test_as_a_file_system(hub):
    _, _, repo, job = hub
    files = HfFileSystem(**endpoint(hub), skip_instance_cache=True)
    assert {Path(name).name for name in files.ls(repo, detail=False)} == set(job["result"]["files"])
    whole = (hub[0].run(job["id"]) / "student" / "vocab.txt").read_bytes()
    with files.open(f"{repo}/vocab.txt", "rb") as file:
        file.seek(100)
        assert file.read(50) == whole[100:150]


@pytest.mark.parametrize(
    ("who", "name", "file", "revision", "error"),
    [
        ("a", None, "nothing.json", "main", RemoteEntryNotFoundError),
        ("a", None, "config.json", "step-9", RevisionNotFoundError),
        ("a", "students/job-0", "config.json", "main", RepositoryNotFoundError),
        ("a", "others/thing", "config.json", "main", RepositoryNotFoundError),
        ("b", None, "config.json", "main", RepositoryNotFoundError),
        ("", None, "config.json", "main", RepositoryNotFoundError),
        ("weak", None, "config.json", "main", GatedRepoError),
        ("etd_wrong", None, "config.json", "main", (HfHubHTTPError, LocalEntryNotFoundError)),
    ],
)
def test_what_is_refused_is_understood(hub, tmp_path, who, name, file, revision, error):
    with pytest.raises(error):
        hf_hub_download(name or hub[2], file, revision=revision, cache_dir=tmp_path, **endpoint(hub, who))


def test_a_wrong_key_is_said_to_be_wrong(hub):
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(**endpoint(hub, "etd_wrong")).model_info(hub[2])


def test_downloads_survive_cut_connections(hub, tmp_path):
    server, secrets, repo, job = hub
    wanted = job["result"]["files"]["model.safetensors"]["sha256"]
    with CuttingProxy(server.url, cuts=2, after=1_000_000) as proxy:
        options = {"endpoint": f"{proxy.url}/hf", "token": secrets["a"], "cache_dir": tmp_path}
        path = Path(hf_hub_download(repo, "model.safetensors", **options))
        assert (proxy.cuts_left, rundir.digest(path).sha256) == (0, wanted)
    with CuttingProxy(server.url, cuts=2, after=1_000_000) as proxy, Client(proxy.url, key=secrets["a"]) as client:
        client.pull(job["id"], tmp_path / "pulled")
        assert (proxy.cuts_left, rundir.digest(tmp_path / "pulled" / "model.safetensors").sha256) == (0, wanted)


@pytest.mark.slow
def test_transformers_and_the_hf_command(hub, tmp_path):
    """A real student (tiny, untrained) is put in the job's place; then the stock tools load it by its name."""
    server, secrets, repo, job = hub
    run = rundir.RunDir(server.run(job["id"]))
    script = f"""
import os
from pathlib import Path
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
from etd_ds.contract import rundir, teachers
run = rundir.RunDir(Path({str(run.root)!r}))
tokenizer = AutoTokenizer.from_pretrained(teachers.embedded_folder())
with rundir.publishing(run.student) as folder:
    model = BertModel(BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
files = {{path.name: rundir.digest(path) for path in run.student.iterdir()}}
rundir.publish_json(run.result, run.read_result().model_copy(update={{"files": files}}))
loaded = AutoModel.from_pretrained({repo!r})
assert all((a == b).all() for a, b in zip(model.parameters(), loaded.parameters()))
words = AutoTokenizer.from_pretrained({repo!r})("by name alone", return_tensors="pt")
assert loaded(**words).last_hidden_state.shape[-1] == 24
"""
    outside = {"HF_ENDPOINT": f"{server.url}/hf", "HF_TOKEN": secrets["a"], "HF_HOME": str(tmp_path)}
    environment = {**os.environ, **outside, "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    command = [str(Path(sys.executable).parent / "hf"), "download", repo, "--local-dir", str(tmp_path / "local")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = run.read_result()
    for name, digest in result.files.items():
        assert rundir.digest(tmp_path / "local" / name) == digest
