"""The labelling run: killed it resumes with nothing lost and nothing twice, failures are recorded, executors agree."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import in_process
import numpy as np
import pytest
from rich.console import Console

from mlip.data.hdf5 import HDF5Frames
from mlip.errors import DataError, UserError
from scf_accel.executors import LocalExecutor, _Losses
from scf_accel.labelrun import LabelRequest, Plan, make_plan, run_label, run_plan
from scf_accel.labels import Labels, LabelSettings
from scf_accel.labelstore import PartStore
from scf_accel.structures import Job, Perturbations, Structure, make_groups

CHEAP = LabelSettings(basis="sto-3g", grid_level=0, conv_tol=1e-7)
CHEAP_OPTIONS = ["--basis", "sto-3g", "--grid-level", "0", "--conv-tol", "1e-7", "--workers", "1"]
FIVE_COPIES = Perturbations(gaussian=((0.03, 0.1),) * 5, seed=1)


def scf_accel(*arguments, cwd=None):
    return in_process.command("scf-accel", *arguments, cwd=cwd)


def smiles_file(folder: Path, text: str) -> Path:
    path = folder / "molecules.smi"
    path.write_text(text, encoding="utf-8")
    return path


def fake_job(name="a", positions=None) -> Job:
    return Job(name, Structure(np.array([1, 1]), np.array(positions or [[0.0, 0, 0], [0, 0, 0.74]]), molecule="[H][H]"))


FAKE_LABELS = Labels(-31.0, np.array([[0.0, 0, 1e-9], [0, 0, -1e-9]]), np.arange(6.0), 5, "diis", 0.1)


# ---------------------------------------------------------------------------------------------------- whole runs


def test_labels_without_forces(tmp_path):
    """They lack forces alone, are another theory than those with, and go the whole way into the file."""
    path, out = smiles_file(tmp_path, "[H][H]\n"), tmp_path / "out.h5"
    assert scf_accel("label", path, out, *CHEAP_OPTIONS, "--no-forces").returncode == 0
    assert scf_accel("label", path, tmp_path / "whole.h5", *CHEAP_OPTIONS).returncode == 0
    bare, whole = HDF5Frames(out), HDF5Frames(tmp_path / "whole.h5")
    assert bare[0].forces is None and whole[0].forces is not None
    assert bare[0].energy == pytest.approx(whole[0].energy, abs=1e-7) and bare[0].id != whole[0].id
    np.testing.assert_allclose(bare[0].density_coefficients, whole[0].density_coefficients, atol=1e-5)
    assert (bare.attrs["level_of_theory"]["forces_from"], bare.attrs["level_of_theory"]["forces"]) == ("none", False)
    assert "forces" not in whole.attrs["level_of_theory"]
    shutil.rmtree(f"{out}.parts")
    misspelt = scf_accel("label", path, out, *CHEAP_OPTIONS, "--no-force")  # once the contrary of --force, and silently so
    assert misspelt.returncode != 0 and "--no-forces" in misspelt.stderr
    cases = (out, [], "forces: False there, True now"), (tmp_path / "whole.h5", ["--no-forces"], "True there")
    for file, options, found in cases:
        refused = scf_accel("label", path, file, *CHEAP_OPTIONS, *options, cwd=tmp_path)
        assert refused.returncode != 0 and found in refused.stderr, refused.stderr


def test_killed_run_resumes_with_nothing_lost_and_nothing_twice(tmp_path):
    path, out = smiles_file(tmp_path, "C=O\nCO\n"), tmp_path / "out.h5"
    arguments = [path, out, *CHEAP_OPTIONS, "--seed", "1", *["--gaussian", "0.03:0.1"] * 5]
    store = PartStore(out)
    command = [sys.executable, "-m", "scf_accel.cli", "label", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 90
        while len(store.done()) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
    kept = {name: (store.folder / f"{name}.npz").read_bytes() for name in store.done()}
    assert 3 <= len(kept) < 12 and not out.exists()
    second = scf_accel("label", *arguments)
    assert second.returncode == 0, second.stderr
    planned = {job.id for group in make_groups(path, FIVE_COPIES, CHEAP.as_dict())[0] for job in group}
    assert len(planned) == 12 and f"{len(kept)} labelled, 0 failed earlier, {12 - len(kept)} to do" in second.stdout
    assert {name: (store.folder / f"{name}.npz").read_bytes() for name in kept} == kept
    assert sorted(frame.id for frame in HDF5Frames(out)) == sorted(planned)
    groups, _ = make_groups(path, FIVE_COPIES, CHEAP.as_dict())
    assert not make_plan(groups, store, 1).todo


def test_failed_molecule_is_recorded_with_its_reason_and_retried_on_request(tmp_path, capsys):
    settings = replace(CHEAP, max_cycle=2, conv_tol=1e-12)
    path, out = smiles_file(tmp_path, "[H]\n[C]=O\nN#N\n"), tmp_path / "out.h5"
    request = LabelRequest(path, out, settings, Perturbations(), workers=1)
    run_label(request)
    store = PartStore(out)
    assert len(store.done()) + len(store.failures()) == 3 and store.failures()
    for entry in store.failures().values():
        assert "not converged" in entry["reason"] and entry["molecule"]
    assert "not converged" in capsys.readouterr().out
    groups, _ = make_groups(path, Perturbations(), settings.as_dict())
    assert not make_plan(groups, store, 0).todo
    assert len(make_plan(groups, store, 0, retry_failed=True).todo) == len(store.failures())
    failed_id = next(iter(store.failures()))
    store.save(Job(failed_id, groups[0][0].structure), FAKE_LABELS)
    assert failed_id not in store.failures()


def test_dask_gives_the_labels_that_local_workers_give(tmp_path):
    from dask.distributed import LocalCluster

    path = smiles_file(tmp_path, "C#N\n[CH3]\n")
    perturbations = Perturbations(gaussian=((0.05, 0.05),), seed=2)
    local = LabelRequest(path, tmp_path / "local.h5", CHEAP, perturbations, workers=1)
    run_label(local)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        run_label(
            replace(local, out=tmp_path / "dask.h5", executor="dask", scheduler=cluster.scheduler_address)
        )
    ours, theirs = HDF5Frames(tmp_path / "dask.h5"), HDF5Frames(tmp_path / "local.h5")
    assert [frame.id for frame in ours] == [frame.id for frame in theirs] and len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-6)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-4)
        np.testing.assert_allclose(one.density_coefficients, other.density_coefficients, atol=1e-4)


def test_dry_run_writes_nothing(tmp_path):
    path = smiles_file(tmp_path, "CCO\n[H]\n")
    arguments = ["label", path, tmp_path / "out.h5", "--dry-run", "--gaussian", "0.05"]
    done = scf_accel(*arguments, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "3 of 2 molecules" in done.stdout and "3 to do" in done.stdout and "pbe/def2-svp" in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["molecules.smi"]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("CCO\nC1CC\n", [], "line 2 (C1CC)"),
        ("C\n", ["--xc", "pbee"], "--xc pbee"),
        ("C\n", ["--gaussian", "-1"], "one positive number or a range"),
    ],
    ids=["SMILES", "functional", "range"],
)
def test_bad_input_is_one_line_and_a_failure(tmp_path, text, options, words):
    done = scf_accel("label", smiles_file(tmp_path, text), tmp_path / "out.h5", *options, cwd=tmp_path)
    assert done.returncode == 1 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out.h5").exists() and not (tmp_path / "out.h5.parts").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"executor": "slurm"}, "allowed are local and dask"),
        ({"executor": "dask"}, "needs --scheduler"),
        ({"scheduler": "tcp://x:1"}, "needs --executor dask"),
        ({"out": Path("out.xyz")}, "name it .h5"),
        ({"assemble_only": True}, "nothing to assemble"),
    ],
)
def test_impossible_requests(tmp_path, changes, words):
    request = LabelRequest(smiles_file(tmp_path, "C\n"), tmp_path / "out.h5", CHEAP, Perturbations())
    with pytest.raises(UserError, match=words):
        run_label(replace(request, **changes))


def test_clean_clone_keeps_the_committed_frames(tmp_path):
    """OUT without its parts folder, as git delivers it: nothing is lost, nothing computed twice."""
    path, out = smiles_file(tmp_path, "[H]\n[He]\n"), tmp_path / "out.h5"
    run_label(LabelRequest(path, out, CHEAP, Perturbations(), workers=1, licence="CC0-1.0"))
    before = {frame.id: frame for frame in HDF5Frames(out)}
    shutil.rmtree(tmp_path / "out.h5.parts")
    longer = smiles_file(tmp_path, "[H]\n[He]\n[H][H]\n")
    run_label(LabelRequest(longer, out, CHEAP, Perturbations(), workers=1, licence="CC0-1.0"))
    after = {frame.id: frame for frame in HDF5Frames(out)}
    assert len(before) == 2 and len(after) == 3 and before.keys() < after.keys()
    assert len(PartStore(out).done()) == 1  # only the new one was computed
    for name, frame in before.items():
        assert after[name].energy == frame.energy and after[name].extras == frame.extras
        np.testing.assert_array_equal(after[name].density_coefficients, frame.density_coefficients)


def test_foreign_output_is_refused_before_any_work(tmp_path):
    import h5py

    path, out = smiles_file(tmp_path, "[H]\n"), tmp_path / "out.h5"
    request = LabelRequest(path, out, CHEAP, Perturbations(), workers=1)
    with h5py.File(out, "w") as file:
        file["precious"] = np.arange(3)
    content = out.read_bytes()
    for attempt in (request, replace(request, assemble_only=True), replace(request, dry_run=True)):
        with pytest.raises(UserError, match=r"not a labelled file .* --force"):
            run_label(attempt)
    assert out.read_bytes() == content and not (tmp_path / "out.h5.parts").exists()
    run_label(replace(request, force=True))
    assert len(HDF5Frames(out)) == 1
    shutil.rmtree(tmp_path / "out.h5.parts")
    with pytest.raises(UserError, match=r"1 frames of another theory \(xc: 'pbe' there, 'blyp' now\).*--force"):
        run_label(replace(request, settings=replace(CHEAP, xc="blyp")))


# ---------------------------------------------------------------------------------------------------- local workers


class _Bomb:
    """Ends the process that unpickles it, as the kernel's out-of-memory killer would."""

    def __reduce__(self):
        return os._exit, (9,)


class _BombStructure(Structure):
    """A structure that ends the worker which it is sent to, or only the first one where ``flag`` names a file."""

    flag: Path | None = None

    def __reduce__(self):
        if self.flag is not None and self.flag.exists():
            return Structure, (self.numbers, self.positions)
        if self.flag is not None:
            self.flag.touch()
        return _Bomb, (_Bomb(),)


def bomb(name: str, flag: Path | None = None) -> Job:
    structure = _BombStructure(**vars(fake_job().structure))
    structure.flag = flag
    return Job(name, structure)


def test_dead_worker_costs_no_other_job_and_its_job_is_tried_twice_then_left_to_the_next_run(tmp_path):
    store = PartStore(tmp_path / "out.h5")
    store.open(CHEAP.as_dict())
    jobs = [fake_job("first"), bomb("bomb"), bomb("once", tmp_path / "flag"), fake_job("last")]
    jobs = [jobs[0], jobs[2], jobs[3], jobs[1]]
    console = Console(record=True, width=200)
    outcome = run_plan(Plan(jobs, 0, 0, jobs), store, LocalExecutor(CHEAP, workers=1), console)
    assert (outcome.labelled, outcome.failed) == (3, 1) and store.done() == {"first", "once", "last"}
    entry = store.failures()["bomb"]
    assert "worker process died (exit code 9)" in entry["reason"] and entry["transient"]
    assert "worker process died (exit code 9)" in console.export_text()
    assert [job.id for job in make_plan([jobs], store, 0).todo] == ["bomb"]  # without --retry-failed


def test_three_dead_workers_in_a_row_end_the_run():
    with pytest.raises(UserError, match="3 times in a row the worker process died"):
        list(LocalExecutor(CHEAP, workers=1).run([bomb(name) for name in "abcd"]))


def test_cancelled_dask_job_is_queued_again_then_transient():
    losses = _Losses()
    job = fake_job()
    assert losses.lost(job, "cancelled") is None
    again = losses.lost(job, "cancelled")
    assert again is not None and again.transient and again.labels is None


class _Probe:
    """Unpickles in a worker into a structure whose molecule tells the worker's environment, as a failed job's reason."""

    def __reduce__(self):
        return _tell_threads, ()


def _tell_threads():
    from pyscf import lib

    class Telltale:
        @property
        def numbers(self):  # read inside the worker's run_job, after it has set its threads
            raise UserError(f"{os.environ['OMP_NUM_THREADS']} {os.environ['OPENBLAS_NUM_THREADS']} {lib.num_threads()}")

        def __reduce__(self):
            return str, ("back",)

    return Telltale()


def test_workers_run_with_the_threads_asked_for_and_parent_is_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (result,) = LocalExecutor(CHEAP, workers=1, threads=2).run([Job("probe", _Probe())])  # type: ignore[arg-type]
    assert result.reason == "2 2 2"
    assert os.environ["OMP_NUM_THREADS"] == "1"


# ---------------------------------------------------------------------------------------------------- plan, store


def test_plan_is_seeded_keeps_copies_together_and_atoms_first():
    def group(name, size):
        numbers, positions = np.ones(size, int), np.zeros((size, 3))
        return [Job(f"{name}{k}", Structure(numbers, positions, molecule=name)) for k in range(3)]

    groups = [group(f"m{k}-", 2 + k % 7) for k in range(60)] + [group("atom", 1)]
    store = PartStore("nowhere.h5")
    plan = make_plan(groups, store, seed=3)
    names = [job.structure.molecule for job in plan.todo]
    assert names[:3] == ["atom"] * 3 and len(names) == 183
    assert all(len(set(names[k : k + 3])) == 1 for k in range(0, 183, 3))
    assert [j.id for j in make_plan(groups, store, seed=3).todo] == [j.id for j in plan.todo]
    assert [j.id for j in make_plan(groups, store, seed=4).todo] != [j.id for j in plan.todo]
    early = [np.mean([len(j.structure.numbers) for j in make_plan(groups, store, 3, p).todo[3:60]]) for p in (0, 3)]
    assert early[1] < early[0]


def test_store_round_trip_and_assembly(tmp_path):
    store = PartStore(tmp_path / "out.h5")
    store.open(CHEAP.as_dict())
    store.save(fake_job("b"), FAKE_LABELS)
    store.save(fake_job("a", [[0.0, 0, 0], [0, 0, 0.8]]), FAKE_LABELS)
    store.record_failure(fake_job("c"), "not converged")
    assert store.assemble({"level_of_theory": CHEAP.level_of_theory(), "licence": "CC0-1.0"}) == 2
    frames = HDF5Frames(tmp_path / "out.h5")
    first = frames[0]
    assert [frame.id for frame in frames] == ["a", "b"]
    assert first.energy == FAKE_LABELS.energy
    assert first.extras["scf_cycles"] == 5 and first.extras["molecule"] == "[H][H]"
    np.testing.assert_array_equal(first.density_coefficients, np.arange(6.0))
    assert frames.attrs["failed_jobs"] == {"count": 1, "reasons": ["[H][H] (given): not converged"]}
    assert frames.attrs["level_of_theory"]["density_metric"] == "coulomb" and frames.attrs["licence"] == "CC0-1.0"


def test_second_order_cycles_of_earlier_versions_are_unknown(tmp_path):
    store = PartStore(tmp_path / "out.h5")
    store.open(CHEAP.as_dict())
    labels = replace(FAKE_LABELS, cycles=66, solver="diis+newton")
    store.save(fake_job("a"), labels)
    assert store.read("a").extras["scf_cycles"] == 66
    with np.load(store.folder / "a.npz") as data:
        older = {name: data[name] for name in data.files if name != "cycles_counted"}
    np.savez(store.folder / "a.npz", **older)
    assert store.read("a").extras["scf_cycles"] == -1


def test_half_written_file_of_a_killed_run_is_no_result(tmp_path):
    store = PartStore(tmp_path / "out.h5")
    store.open(CHEAP.as_dict())
    (store.folder / ".a.npz.123.tmp").write_bytes(b"half")
    assert store.done() == set()
    store.open(CHEAP.as_dict())
    assert not list(store.folder.glob(".*.tmp"))


def test_damaged_part_is_named(tmp_path):
    store = PartStore(tmp_path / "out.h5")
    store.open(CHEAP.as_dict())
    (store.folder / "a.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=r"a\.npz is damaged .*delete it"):
        list(store.frames())


def test_other_theory_is_refused(tmp_path):
    store = PartStore(tmp_path / "out.h5")
    store.open(CHEAP.as_dict())
    with pytest.raises(DataError, match="xc: 'pbe' there, 'blyp' now"):
        store.open(replace(CHEAP, xc="blyp").as_dict())


def test_two_runs_on_one_output_are_refused(tmp_path):
    store = PartStore(tmp_path / "out.h5")
    with store.lock(), pytest.raises(UserError, match="another run is writing"), PartStore(tmp_path / "out.h5").lock():
        pass
    with store.lock():
        pass


def test_progress_without_a_terminal_prints_rate(tmp_path, monkeypatch):
    store = PartStore(tmp_path / "out.h5")
    store.open(CHEAP.as_dict())
    plan = make_plan([[fake_job("a")]], store, 0)
    console = Console(record=True, width=200)
    outcome = run_plan(plan, store, LocalExecutor(CHEAP, workers=1), console)
    assert outcome.labelled == 1 and outcome.failed == 0
    assert "1/1 done, 0 failed" in console.export_text()
