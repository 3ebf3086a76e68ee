"""Writes the fixture of the current checkpoint format: ``python tests/models/make_fixture.py`` once per format version."""

import json
from pathlib import Path

import torch
from ase.build import molecule
from densities import toy_reference

from mlip.checkpoint import FORMAT_VERSION, load_model, save_model
from mlip.models import build
from mlip.models.uncertainty import Uncertainty
from mlip.testing import evaluate, evaluate_density, graph_of

if __name__ == "__main__":
    path = Path(__file__).parent / "fixtures" / f"format-{FORMAT_VERSION}.safetensors"
    fields = {"channels": 4, "l_max": 1, "density": {"channels": 4}}
    e0 = {1: -13.6, 6: -1029.0, 8: -2041.0}
    model = build(fields, ["H", "C", "O"], e0=e0, density=toy_reference([1, 6, 8]), seed=0)
    size, local = model.head.num_linear, model.head.num_linear + model.config.channels
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (size, local)]
    scale = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    model.uncertainty = Uncertainty(factors[0], factors[1], scale, {"note": "random"})
    save_model(model, path, {"note": "fixture"})
    loaded = load_model(path, "float64")
    out = loaded(graph_of(molecule("CH3CHO"), loaded.cutoff), compute_uncertainty=True)
    wanted = {
        "energy_std": out["energy_std"].tolist(),
        "forces_std": out["forces_std"].tolist(),
        "energy": float(evaluate(loaded, molecule("CH3CHO"))["energy"][0]),
        "density": evaluate_density(loaded, molecule("CH3CHO"))[0].tolist(),
    }
    path.with_suffix(".json").write_text(json.dumps(wanted) + "\n")
