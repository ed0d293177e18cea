import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Threads only wait for each other over tensors as small as these."""
    torch.set_num_threads(1)
