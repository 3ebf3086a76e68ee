"""Writes the fixture of the current checkpoint format: ``python tests/models/make_fixture.py`` once per format version."""

import json
from pathlib import Path

from ase.build import molecule

from mlip.checkpoint import FORMAT_VERSION, load_model, save_model
from mlip.models import build
from mlip.testing import evaluate

if __name__ == "__main__":
    path = Path(__file__).parent / "fixtures" / f"format-{FORMAT_VERSION}.safetensors"
    model = build({"channels": 4, "l_max": 1}, ["H", "C", "O"], e0={1: -13.6, 6: -1029.0, 8: -2041.0}, seed=0)
    save_model(model, path, {"note": "fixture"})
    energy = evaluate(load_model(path, "float64"), molecule("CH3CHO"))["energy"][0]
    path.with_suffix(".json").write_text(json.dumps({"energy": float(energy)}) + "\n")
