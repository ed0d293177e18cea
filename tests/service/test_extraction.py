"""The extraction worker of the library, asked as the service asks it."""

from __future__ import annotations

import os

import pytest
import safetensors.numpy

from etd_ds.contract import rundir, spec
from service import revisions
from service.extraction import Extractor
from service.problems import Problem
from service.settings import Settings

SMALL = spec.JobSpec(layers=3, hidden=192, mode="rand")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("service")
    made = Settings(data_dir=root / "data", cache=root / "cache")
    made.prepare()
    return made


@pytest.mark.slow
def test_the_real_worker_checks_and_extracts(settings):
    extractor = Extractor(settings)
    try:
        extractor.warm()
        with pytest.raises(Problem) as refused:
            extractor.plan(SMALL.model_copy(update={"layers": 7}))
        assert (refused.value.status, refused.value.errors[0]["field"]) == (422, "layers")
        costs = extractor.plan(SMALL.model_copy(update={"steps": 10}))
        assert (costs["teacher"]["layers"], costs["student"]["layers"], costs["student"]["hidden"]) == (6, 3, 192)
        assert costs["flops"] == 10 * costs["step_flops"] > 0
        assert costs["compression"] == costs["teacher_parameters"] / costs["parameters"]
        run = rundir.RunDir(settings.incoming / "job")
        rundir.publish_json(run.job, SMALL)
        plan = extractor.extract(run)
        assert plan == run.read_plan()
        assert plan.student_parameters == costs["parameters"]
        checkpoint = run.checkpoints / "step-00000007"
        checkpoint.mkdir(parents=True)
        weights = safetensors.numpy.load_file(run.init / "model.safetensors")
        state = {f"parameter.bert.{name}": 2 * value for name, value in weights.items()}
        safetensors.numpy.save_file(state, checkpoint / "state.safetensors")
        (checkpoint / "progress.json").write_text('{"step": 7}')
        digests = {path.name: rundir.digest(path).model_dump() for path in checkpoint.iterdir()}
        rundir.publish_json(checkpoint / "digests.json", digests)
        extractor.revision(run, 7)
        made = revisions.of_run(run)["step-7"]
        assert set(made.files) >= set(rundir.STUDENT_FILES)
        for name, value in safetensors.numpy.load_file(made.folder / "model.safetensors").items():
            if "pooler" not in name:  # distillation does not touch it
                assert (value == 2 * weights[name]).all(), name
        with pytest.raises(Problem, match="no such checkpoint"):
            extractor.revision(run, 8)
        assert (run.init / "model.safetensors").is_file()
        assert extractor.ready
        assert extractor._process is not None
        assert os.getsid(extractor._process.pid) != os.getsid(0), "Ctrl-C does not reach it"
    finally:
        extractor.close()
    with pytest.raises(Problem):
        extractor.plan(SMALL)
