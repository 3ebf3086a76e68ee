#!/bin/sh
# Label (or go on labelling) the wide list with energies and densities alone; run from the repository root.
exec .venv/bin/scf-accel label datasets/organics/molecules-wide.smi datasets/organics/densities.h5 --no-forces \
    --grid-level 0 --conv-tol 1e-7 --max-atoms 24 --seed 0 --langevin 300:800 \
    --licence "CC0-1.0" --workers "${WORKERS:-2}" --nice 19 "$@"
