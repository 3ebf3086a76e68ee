#!/bin/sh
# Label (or go on labelling) a copy with a bond pulled open of each small molecule of the first list, into the same file; run from the repository root.
exec .venv/bin/scf-accel label datasets/organics/molecules.smi datasets/organics/organics.h5 \
    --max-atoms 10 --prefer-small 3 --seed 0 --stretch 1.1:1.6 \
    --licence "CC0-1.0" --workers "${WORKERS:-2}" --nice 19 "$@"
