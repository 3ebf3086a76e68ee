"""One thread for every test and the processes it starts: the suite runs on all cores by pytest-xdist, and two OpenMP teams on one
core stall each other."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
