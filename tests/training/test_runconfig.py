"""A config says what is wrong with it, in one line that names the key."""

from __future__ import annotations

import pytest
import yaml
from training_toys import toy_values, write_config

from mlip.configfile import apply_overrides, load_config, parse_config, read_yaml
from mlip.errors import ConfigError, UserError
from mlip.training.runfolder import RunFolder, dump_config

BASE = {"data": {"train": "a.h5"}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_epoch=3", r"training\.max_epoch: unknown key; did you mean training\.max_epochs\?"),
        ("trainning.lr=3", r"trainning: unknown key; did you mean training\?"),
        ("loss.force.weight=3", r"loss\.force: unknown key; did you mean loss\.forces\?"),
        ("loss.energy.wieght=3", r"loss\.energy\.wieght: unknown key; did you mean loss\.energy\.weight\?"),
        ("training.batch_size=3", r"did you mean data\.batch_size\?"),
        ("model.chanels=3", r"model\.chanels: unknown key; did you mean model\.channels\?"),
        ("model.radial.kindd=mlp", r"model\.radial\.kindd: unknown key; did you mean model\.radial\.kind\?"),
        ("model.preset=tiny", r"model\.preset: unknown preset 'tiny'; allowed: small"),
        ("training.lr=fast", r"training\.lr: .*number.*\(found 'fast'\)"),
        ("training.lr=-1", r"training\.lr: .*greater than 0"),
        ("loss.energy.kind=l3", r"loss\.energy\.kind: .*'l1', 'l2' or 'huber'"),
        ("data.valid=1.5", r"data\.valid.*neither a file nor a fraction"),
        ("data={train: a, batch_size: 3, max_atoms: 9}", r"give either batch_size or max_atoms"),
        ("training={lr: 0.1}", "a run needs an end"),
        ("data.units.energy=parsec", "unknown unit of energy 'parsec'"),
    ],
)
def test_a_bad_key_or_value_is_named(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(apply_overrides(BASE, [override]))
    assert "\n" not in str(caught.value)


def test_overrides_are_yaml_and_merge():
    values = apply_overrides(BASE, ["training.lr=1e-3", "loss.forces={weight: 7, kind: l1}", "data.valid=0.25"])
    config = parse_config(apply_overrides(values, ["loss.forces.weight=9", "training.max_epochs=4"]))
    assert (config.training.lr, config.training.max_epochs, config.data.valid) == (1e-3, 4, 0.25)
    assert (config.loss.forces.weight, config.loss.forces.kind) == (9, "l1")
    assert config.data.train == "a.h5"


@pytest.mark.parametrize("text", ["training.lr", "=3", "data.train.x=1", "a=[1"])
def test_a_malformed_override_is_an_error(text):
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides(BASE, [text])


def test_an_override_replaces_a_mapping():
    values = {"data": {"train": "a", "test": {"x": "1", "y": "2"}}}
    assert apply_overrides(values, ["data.test={z: 3}"])["data"]["test"] == {"z": 3}


def test_duplicate_keys_and_broken_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data: {train: a}\ndata: {train: b}\n")
    with pytest.raises(ConfigError, match="'data' is given twice"):
        load_config(path)
    path.write_text("data: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml")


def test_a_merged_mapping_may_be_overridden(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("one: &a {x: 1, y: 2}\ntwo:\n  <<: *a\n  y: 3\n")
    assert read_yaml(path)["two"] == {"x": 1, "y": 3}
    path.write_text("two:\n  <<: 5\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        read_yaml(path)


def test_paths_are_found_beside_the_config_and_above_it(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "a.h5").touch()
    path = write_config(tmp_path / "configs", {"data": {"train": "sets/a.h5"}})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_config(path).data.train == str((tmp_path / "sets" / "a.h5").resolve())
    (elsewhere / "sets").mkdir()
    (elsewhere / "sets" / "a.h5").touch()  # the working directory goes first
    assert load_config(path).data.train == str((elsewhere / "sets" / "a.h5").resolve())
    with pytest.raises(ConfigError, match=r"data\.test: the file none\.h5 does not exist"):
        load_config(path, ["data.test=none.h5"])


def test_the_resolved_config_reads_back_equal(tmp_path):
    config = load_config(write_config(tmp_path, toy_values(tmp_path)))
    again = write_config(tmp_path, {}, "again.yaml")
    again.write_text(dump_config(config))
    assert dump_config(load_config(again)) == dump_config(config)


def enter(folder, config, restart):
    """Begin a run and leave it at once; whether one is gone on with."""
    resumed = folder.check(config, restart)
    with folder.entered(config, restart, resumed):
        return resumed


def test_a_run_folder_is_entered_by_its_own_config_only(tmp_path):
    config = load_config(write_config(tmp_path, toy_values(tmp_path)))
    folder = RunFolder(config.run.dir)
    assert enter(folder, config, restart=False) is False
    assert enter(folder, config, restart=False) is False  # nothing trained yet: starts anew
    folder.checkpoint.touch()
    assert enter(folder, config, restart=False) is True
    other = parse_config(apply_overrides(config.model_dump(), ["training.lr=0.5"]))
    with pytest.raises(ConfigError, match=r"training\.lr 0\.01 -> 0\.5.*--restart"):
        enter(folder, other, restart=False)
    folder.results.touch()
    with pytest.raises(ConfigError, match=r"finished run.*--restart"):
        enter(folder, config, restart=False)
    assert enter(folder, other, restart=True) is False
    assert not folder.checkpoint.exists() and not folder.results.exists()


def test_nothing_is_replaced_before_the_run_begins(tmp_path):
    config = load_config(write_config(tmp_path, toy_values(tmp_path)))
    folder = RunFolder(config.run.dir)
    assert folder.check(config, restart=False) is False and not folder.path.exists()
    enter(folder, config, restart=False)
    for file in (folder.checkpoint, folder.model, folder.results):
        file.touch()
    assert folder.check(config, restart=True) is False
    assert folder.checkpoint.exists() and folder.model.exists() and folder.results.exists()
    words = (config, True, False)
    with folder.entered(*words), pytest.raises(UserError, match="another run is writing"), RunFolder(folder.path).entered(*words):
        pass
    assert not folder.checkpoint.exists() and not folder.model.exists() and not folder.results.exists()


def test_a_run_that_was_there_only_after_the_check_is_not_replaced(tmp_path):
    config = load_config(write_config(tmp_path, toy_values(tmp_path)))
    folder = RunFolder(config.run.dir)
    assert folder.check(config, restart=False) is False
    enter(RunFolder(config.run.dir), config, restart=False)  # another process, while this one reads its data
    folder.checkpoint.touch()
    with pytest.raises(ConfigError, match="another run has written"), folder.entered(config, False, False):
        pass
    folder.results.touch()
    with pytest.raises(ConfigError, match="finished run"), folder.entered(config, False, False):
        pass
    assert folder.checkpoint.exists() and folder.results.exists()


def test_a_run_of_the_version_before_goes_on(tmp_path):
    """Keys that its config.yaml could not know stand for what was done then."""
    config = load_config(write_config(tmp_path, toy_values(tmp_path)))
    folder = RunFolder(config.run.dir)
    enter(folder, config, restart=False)
    folder.checkpoint.touch()
    written = yaml.safe_load((folder.path / "config.yaml").read_text())
    del written["loss"]["density"]["auxiliary"]
    (folder.path / "config.yaml").write_text(yaml.safe_dump(written))
    assert enter(folder, config, restart=False) is True and folder.checkpoint.exists()


def test_overwrite_resumes_an_unfinished_run_of_the_same_config(tmp_path):
    """The same command after kill -9 goes on, also with run.overwrite; a finished or a different run is replaced."""
    values = toy_values(tmp_path)
    values["run"]["overwrite"] = True
    config = load_config(write_config(tmp_path, values))
    folder = RunFolder(config.run.dir)
    enter(folder, config, restart=False)
    folder.checkpoint.touch()
    assert enter(folder, config, restart=False) is True and folder.checkpoint.exists()
    other = parse_config(apply_overrides(config.model_dump(), ["training.lr=0.5"]))
    assert enter(folder, other, restart=False) is False and not folder.checkpoint.exists()
    folder.checkpoint.touch()
    folder.results.touch()
    assert enter(folder, other, restart=False) is False and not folder.results.exists()
    folder.checkpoint.touch()
    assert enter(folder, other, restart=True) is False and not folder.checkpoint.exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    values = toy_values(tmp_path / "data")
    values["run"]["dir"] = str(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    config = load_config(write_config(tmp_path, values))
    with pytest.raises(ConfigError, match="not a run's"):
        enter(RunFolder(config.run.dir), config, restart=True)
