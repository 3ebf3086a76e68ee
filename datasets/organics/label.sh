#!/bin/sh
# Label (or go on labelling) this set; run from the repository root. Interrupt at any time, run again to go on.
exec .venv/bin/scf-accel label datasets/organics/molecules.smi datasets/organics/organics.h5 \
    --max-atoms 20 --prefer-small 3 --seed 0 --gaussian 0.02:0.1 --langevin 300:600 --langevin 500:1000 \
    --licence "CC0-1.0" --workers "${WORKERS:-2}" --nice 19 "$@"
