#!/bin/sh
# Label (or go on labelling) the ions and radicals, a set of their own; run from the repository root.
exec .venv/bin/scf-accel label datasets/organics/ions.smi datasets/organics/ions.h5 \
    --max-atoms 20 --prefer-small 3 --seed 0 --langevin 300:600 \
    --licence "CC0-1.0" --workers "${WORKERS:-2}" --nice 19 "$@"
