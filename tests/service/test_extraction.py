"""The extraction worker of the library, asked as the service asks it."""

from __future__ import annotations

import pytest

from etd_ds.contract import rundir, spec
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
        teacher, student = extractor.check(SMALL)
        assert (teacher.layers, student.layers, student.hidden) == (6, 3, 192)
        with pytest.raises(Problem) as refused:
            extractor.check(SMALL.model_copy(update={"layers": 7}))
        assert (refused.value.status, refused.value.errors[0]["field"]) == (422, "layers")
        costs = extractor.plan(SMALL.model_copy(update={"steps": 10}))
        assert costs["flops"] == 10 * costs["step_flops"] > 0
        assert costs["compression"] == costs["teacher_parameters"] / costs["parameters"]
        run = rundir.RunDir(settings.incoming / "job")
        rundir.publish_json(run.job, SMALL)
        plan = extractor.extract(run)
        assert plan == run.read_plan()
        assert plan.student_parameters == costs["parameters"]
        assert (run.init / "model.safetensors").is_file()
        assert extractor.ready
    finally:
        extractor.close()
    with pytest.raises(Problem):
        extractor.check(SMALL)
