#!/bin/sh
# Label (or go on labelling) the wide list with energies, forces and densities, two geometries a molecule; run from the repository root.
exec .venv/bin/scf-accel label datasets/organics/molecules-wide.smi datasets/organics/wide.h5 \
    --grid-level 1 --max-atoms 20 --seed 0 --langevin 300:800 \
    --licence "CC0-1.0" --workers "${WORKERS:-2}" --nice 19 "$@"
