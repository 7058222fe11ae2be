"""Two threads for every library, so that the ratios are those of one setting, and a line on the machine."""

import platform

import pytest
import scipy
import torch
from threadpoolctl import threadpool_limits

THREADS = 2


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with threadpool_limits(THREADS):
        yield
    torch.set_num_threads(before)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="torch device to measure on: cpu, cuda")


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


def pytest_report_header(config):
    device = config.getoption("--device")
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    threads = f"{THREADS} threads, torch {torch.__version__}, scipy {scipy.__version__}"
    return f"{where}; {platform.processor() or platform.machine()}, {threads}"
