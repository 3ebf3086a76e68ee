"""One thread for every test and the processes it starts: the suite runs on all cores by pytest-xdist, and two OpenMP teams on one
core stall each other."""

import os
import sys

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"


@pytest.fixture(autouse=True)
def _one_thread_again():
    """Back to one thread where a test (of ``--threads``, say) asked for more: the tests after it would be several times slower."""
    yield
    torch, pyscf = sys.modules.get("torch"), sys.modules.get("pyscf.lib")
    more = (torch is not None and torch.get_num_threads() > 1) or (pyscf is not None and pyscf.num_threads() > 1)
    if more:
        from threadpoolctl import threadpool_limits

        threadpool_limits(limits=1)
        if torch is not None:
            torch.set_num_threads(1)
        if pyscf is not None:
            pyscf.num_threads(1)
