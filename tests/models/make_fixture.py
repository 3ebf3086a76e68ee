"""Writes the fixture of the current checkpoint format: ``python tests/models/make_fixture.py`` once per format version."""

import json
from pathlib import Path

from ase.build import molecule
from densities import toy_reference

from mlip.checkpoint import FORMAT_VERSION, load_model, save_model
from mlip.models import build
from mlip.testing import evaluate, evaluate_density

if __name__ == "__main__":
    path = Path(__file__).parent / "fixtures" / f"format-{FORMAT_VERSION}.safetensors"
    fields = {"channels": 4, "l_max": 1, "density": {"channels": 4}}
    e0 = {1: -13.6, 6: -1029.0, 8: -2041.0}
    model = build(fields, ["H", "C", "O"], e0=e0, density=toy_reference([1, 6, 8]), seed=0)
    save_model(model, path, {"note": "fixture"})
    loaded = load_model(path, "float64")
    wanted = {
        "energy": float(evaluate(loaded, molecule("CH3CHO"))["energy"][0]),
        "density": evaluate_density(loaded, molecule("CH3CHO"))[0].tolist(),
    }
    path.with_suffix(".json").write_text(json.dumps(wanted) + "\n")
