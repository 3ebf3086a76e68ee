"""Functionals and basis sets that label and run accept, and the core potentials that come with a basis."""

from __future__ import annotations

import pytest

pytest.importorskip("pyscf")
from mlip.errors import UserError
from scf_accel import labels, runinput
from scf_accel.theory import check_functional, core_potential


@pytest.mark.parametrize("xc", ["pbe", "b3lyp", "wb97x-v", "pbe,", "0.5*hf+0.5*pbe,lyp", "scan", "rsh(0.3,1,-1)+pbe", "hf"])
def test_functionals_of_pyscf_pass(xc: str) -> None:
    check_functional(xc)


@pytest.mark.parametrize("xc", ["0", "", ",", "pbe,0", "99999", "1e", "pbe00", "br89,", "mgga_c_cs", "cc06"])
def test_others_are_one_line_for_both_commands(xc: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--xc") as error:
        runinput.check_theory(runinput.Theory(xc=xc))
    with pytest.raises(labels.LabelError, match="--xc") as other:
        labels.check_theory(labels.LabelSettings(xc=xc))
    assert str(error.value) == str(other.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # libxc prints by itself where it is asked for an unknown number


def test_core_potentials_of_basis_sets() -> None:
    assert core_potential("ccecp-aug-cc-pvdz", "C")[0] == 2 == core_potential("bfd-vdz", "C")[0]
    assert core_potential("def2-svp", "Fe") is None and core_potential("6-31g", "C") is None
    assert core_potential("lanl2dz", "Fe")[0] == 10
