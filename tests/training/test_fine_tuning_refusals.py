"""What cannot be fine-tuned is refused in one line that says what to change; what may be said twice may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from finetune_toys import FIELDS, fine_tune_values, write_source
from training_toys import write_config

from mlip.config import ModelSection
from mlip.configfile import apply_overrides, load_config, parse_config
from mlip.errors import CheckpointError, ConfigError
from mlip.initfrom import _given, contradictions, without_heads
from mlip.models import ModelConfig, preset
from mlip.training.prepare import prepare
from mlip.training.runfolder import dump_config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a source, and the values of a run from it."""
    folder = tmp_path_factory.mktemp("refusals")
    values = fine_tune_values(folder)
    (folder / "unfinished").mkdir()
    (folder / "model.pt2").touch()
    return folder, values


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.cutoff=6.0", r"model\.cutoff is 6\.0, and .*source has 4\.0: fine-tuning keeps the architecture; leave"),
        ("model.radial.kind=mlp", r"model\.radial\.kind is mlp, and .*source has bessel"),
        ("model.preset=small", r"model\.channels is 32, and .*source has 4"),
        ("model.density={}", r"model\.density is \{\}, and .*source has None"),
        ("model.gate={sparsity: 0.3}", r"model\.gate is .*, and .*source has None"),
        ("model.energy=false", r"model\.energy is False, and .*source has True"),
        ("model.chanels=4", r"model\.chanels: unknown key; did you mean model\.channels\?"),
        ("model.init_form=x", r"model\.init_form: unknown key; did you mean model\.init_from\?"),
        ("model.init_from=organic", r"no model organic: neither a file nor a run folder .* nor a shipped model \(.*density"),
        ("model.init_from=unfinished", r"the folder unfinished has no model\.safetensors; is that run finished\?"),
        ("model.init_from=model.pt2", r"model\.pt2 is compiled and cannot be trained; give the model\.safetensors"),
        ("run.dir=FOLDER/source", r"lies in run\.dir .*, whose model the run would replace; choose another run\.dir"),
        ("model.init_from=organics-density", r"loss\.stress\.weight is 1, and the model has no energy head"),
    ],
)
def test_one_line_says_what_to_change(place, override, message):
    folder, values = place
    values = json.loads(json.dumps(values))
    with pytest.raises((ConfigError, CheckpointError), match=message) as caught:
        parse_config(apply_overrides(values, [override.replace("FOLDER", str(folder))]), [folder])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("elements", "override", "message"),
    [
        ((13, 29), "data.e0={Cu: 1.0}", r"data\.e0: no value for Au, which source does not know; add it"),
        ((13, 29), "data.e0={Xx: 1.0}", r"data\.e0: Xx is not an element"),
        ((13, 29, 79), "data.e0=isolated", r"data\.e0: no isolated atom of Cu, Au in the data"),
    ],
)
def test_energies_of_atoms_that_cannot_be_had(tmp_path, elements, override, message):
    values = fine_tune_values(tmp_path, source=write_source(tmp_path / "source", elements))
    with pytest.raises(ConfigError, match=message):
        prepare(load_config(write_config(tmp_path, values), [override]))


def test_what_the_source_says_too_may_be_given(place, monkeypatch):
    folder, values = place
    (folder / "configs").mkdir()
    written = {**values, "model": {"init_from": "source", **FIELDS, "radial": {"kind": "bessel"}, "density": None}}
    config = load_config(write_config(folder / "configs", written))  # found in the folder above
    assert config.model.init_from == str((folder / "source").resolve())
    assert config.model.resolve() == ModelConfig(**FIELDS)
    again = folder / "again.yaml"
    again.write_text(dump_config(config))
    assert dump_config(load_config(again)) == dump_config(config)
    file = load_config(write_config(folder, values), [f"model.init_from={folder / 'source' / 'model.safetensors'}"])
    assert file.model.resolve() == config.model.resolve()


def test_a_head_left_out_takes_its_layers_entries_with_it():
    paths = [[[0, 0, 0]], [[0, 0, 0], [1, 1, 0]], [[0, 0, 0]]]
    joint = ModelConfig(density={}, paths=paths, zbl=True).model_dump(mode="json")
    assert ModelConfig(**without_heads(joint, {"density": None})).paths == [[tuple(p) for p in layer] for layer in paths[:2]]
    alone = ModelConfig(**without_heads(joint, {"energy": False}))
    assert not alone.energy and not alone.zbl and len(alone.paths) == 3
    assert without_heads(joint, {}) == joint
    gated = ModelConfig(density={}, gate={"sparsity": [0.1, 0.2, 0.3]}).model_dump(mode="json")
    assert without_heads(gated, {"density": None})["gate"] == {"sparsity": [0.1, 0.2]}


def test_a_run_remembers_its_source(place, tmp_path):
    """Its folder is entered by the same source only, also where that is gone."""
    from mlip.training.runfolder import RunFolder

    _, values = place
    values = {**values, "model": {"init_from": str(write_source(tmp_path / "mine"))}, "run": {"dir": str(tmp_path / "run")}}
    config = parse_config(values)
    folder = RunFolder(config.run.dir)
    with folder.entered(config, False, folder.check(config, restart=False)):
        pass
    other = parse_config({**values, "model": {"init_from": str(write_source(tmp_path / "other"))}})
    Path(config.run.dir, "training.ckpt").touch()
    with pytest.raises(ConfigError, match=r"model\.init_from '.*mine' -> '.*other'"):
        folder.check(other, restart=False)
    (tmp_path / "mine" / "model.safetensors").unlink()
    assert parse_config(values) == config
    assert yaml.safe_load(Path(config.run.dir, "config.yaml").read_text())["model"]["init_from"] == str(tmp_path / "mine")
    Path(config.run.dir, "training.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"the folder .*mine has no model"):
        parse_config(values)


@pytest.mark.parametrize("name", ["small", "medium"])
def test_a_preset_may_be_named_again_for_a_model_that_it_made(name):
    """Trained, it has no gates any more, whatever a training from scratch has by default."""
    section = ModelSection(preset=name, init_from="organics-density")
    found = {**preset(name).model_dump(mode="json"), "gate": None}
    assert section.resolve().gate is None and not list(contradictions(_given(section), found))
    assert ModelSection(preset=name).resolve().gate is not None
