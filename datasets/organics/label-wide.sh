#!/bin/sh
# Label (or go on labelling) the wide list into the same file: many molecules, two geometries of each; run from the repository root.
exec .venv/bin/scf-accel label datasets/organics/molecules-wide.smi datasets/organics/organics.h5 \
    --max-atoms 20 --seed 0 --langevin 300:800 \
    --licence "CC0-1.0" --workers "${WORKERS:-2}" --nice 19 "$@"
