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


def pytest_report_header():
    return f"{platform.processor() or platform.machine()}, {THREADS} threads, torch {torch.__version__}, scipy {scipy.__version__}"
