"""Coulomb matrix of a fitted density, ``J_mn = sum_P (mn|P) c_P``, Hartree.

Where ``mf`` holds (or is about to make) the three-index integrals ``B = L^-1 (Q|mn)``, ``L L^T = (Q|Q')``, of its own density
fitting, they give

    J_mn = sum_Q y_Q B_Q,mn,    L y = b,    b_Q = sum_P (Q|P) c_P

which is exact if the density lives in the same auxiliary basis ``Q``, and else takes the Coulomb projection of the
density onto that basis (the one that ``mf``'s own fitted J would see). Everywhere else the integrals are contracted as
they are made: products that the Schwarz inequality bounds below ``SCREENING`` are left out (Haser and Ahlrichs, J. Comput.
Chem. 10, 104 (1989)), memory is ``n_ao^2`` numbers a thread whatever the size of the auxiliary basis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
from pyscf import df, dft, gto, lib
from pyscf.scf import _vhf
from pyscf.scf.jk import get_jk

SCREENING = 1e-10  # Hartree: a smaller contribution to an element of J is left out
SAME = 1e-6  # integrals that differ by more are not those of the auxiliary basis that they are said to belong to


def coulomb_matrix(mf: Any, auxmol: gto.Mole, coefficients: np.ndarray) -> np.ndarray:
    """``[nao, nao]`` Coulomb matrix in the orbitals of ``mf``, Hartree.

    Args:
        mf: the mean-field object; only its molecule and its density fitting matter.
        auxmol: auxiliary molecule of the density, Cartesian or spherical like ``mf.mol``.
        coefficients: ``[n_aux]`` of the density.
    """
    fitting = fitting_of(mf)
    matrix = None if fitting is None else from_fitting(fitting, auxmol, coefficients)
    return direct(mf.mol, auxmol, coefficients) if matrix is None else matrix


def fitting_of(mf: Any) -> df.DF | None:
    """The density fitting of ``mf`` where its integrals are held, or are made now because ``mf`` needs them next."""
    fitting = getattr(mf, "with_df", None)
    if not isinstance(fitting, df.DF) or fitting.mol.omega != 0:
        return None
    if fitting._cderi is None and needs_exchange(mf) and not getattr(mf, "only_dfj", False):
        fitting.build()
    return None if fitting._cderi is None or fitting.auxmol is None else fitting


def needs_exchange(mf: Any) -> bool:
    """Whether a Fock matrix of ``mf`` contains exact exchange."""
    return not isinstance(mf, dft.rks.KohnShamDFT) or mf._numint.libxc.is_hybrid_xc(mf.xc)


def from_fitting(fitting: df.DF, auxmol: gto.Mole, coefficients: np.ndarray) -> np.ndarray | None:
    """J from the integrals that ``fitting`` holds; None if they are not Cholesky-transformed ones of ``fitting.auxmol``."""
    own = fitting.auxmol
    if own.cart != auxmol.cart or fitting.get_naoaux() != own.nao:
        return None
    try:
        root = scipy.linalg.cholesky(own.intor("int2c2e", hermi=1), lower=True)
    except scipy.linalg.LinAlgError:
        return None  # PySCF made them in another way, with signs that are not ours to guess
    charges = gto.mole.intor_cross("int2c2e", own, auxmol) @ coefficients
    weights = scipy.linalg.solve_triangular(root, charges, lower=True)
    total: Any = 0.0
    first, row = np.empty(own.nao), 0
    for block in fitting.loop():
        rows = slice(row, row + len(block))
        total = total + weights[rows] @ block
        first[rows] = block[:, 0]
        row += len(block)
    expected = df.incore.aux_e2(fitting.mol, own, "int3c2e", shls_slice=(0, 1, 0, 1, 0, own.nbas))[0, 0]
    if np.abs(root @ first - expected).max() > SAME:
        return None
    return lib.unpack_tril(total)


def direct(mol: gto.Mole, auxmol: gto.Mole, coefficients: np.ndarray, screening: float = SCREENING) -> np.ndarray:
    """J from integrals made and contracted on the fly."""
    both = gto.mole.conc_mol(mol, auxmol)
    one = np.zeros_like(both._bas[:1])  # a fourth index of length one, which PySCF's driver asks for
    one[0, [gto.NPRIM_OF, gto.NCTR_OF]] = 1
    both._bas = np.vstack([both._bas, one])
    stop = mol.nbas + auxmol.nbas
    shells = (0, mol.nbas, 0, mol.nbas, mol.nbas, stop, stop, stop + 1)
    options = _vhf._VHFOpt(mol, prescreen="CVHFnr3c2e_vj_pass2_prescreen", direct_scf_tol=screening)
    options.init_cvhf_direct(mol, "int2e", "CVHFnr_int2e_q_cond")
    options._cintopt = _vhf.make_cintopt(both._atm, both._bas, both._env, both._add_suffix("int3c2e"))
    options.q_cond = np.hstack([options.q_cond.ravel(), repulsions(auxmol)])
    options.dm_cond = np.maximum.reduceat(np.abs(coefficients), auxmol.ao_loc[:-1])
    script = "ijkl,lk->ij"
    return get_jk(both, coefficients[None], script, "int3c2e", "s2ij", hermi=1, shls_slice=shells, vhfopt=options)


def repulsions(auxmol: gto.Mole) -> np.ndarray:
    """``[n_shells]`` square root of the largest self-repulsion ``(P|P)`` of a shell's functions."""
    diagonals = [auxmol.intor("int2c2e", shls_slice=(n, n + 1, n, n + 1)).max() for n in range(auxmol.nbas)]
    return np.sqrt(np.asarray(diagonals))
