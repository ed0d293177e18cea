import pytest
import small_teacher
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Threads only wait for each other over tensors as small as these."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return small_teacher.write(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return small_teacher.write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")
