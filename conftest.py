"""Settings of every pytest run: the same environment as run.py's, no network, and no cell after a failed one."""

import os
import socket

import pytest

from run import environment

os.environ.update(environment(offline=True))
os.environ.setdefault("RLHF_RUN", "test")
THIS_COMPUTER = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Let the tests connect to this computer only."""
    connect = socket.socket.connect

    def connect_here(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in THIS_COMPUTER:
            raise OSError(f"a test tried to reach {address[0]}; tests use no network")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and item.path.suffix == ".ipynb":
        item.parent.failed_before = True
    return report


def pytest_runtest_setup(item):
    if getattr(item.parent, "failed_before", False):
        pytest.skip("an earlier cell of this notebook failed")
