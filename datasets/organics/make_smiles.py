"""Make the lists of molecules of this set: our own small ones, then seeded picks from public lists.

    python datasets/organics/make_smiles.py FOLDER_WITH_SMI_FILES > datasets/organics/molecules.smi
    python datasets/organics/make_smiles.py FOLDER_WITH_SMI_FILES --wide > datasets/organics/molecules-wide.smi
    python datasets/organics/make_smiles.py FOLDER_WITH_SMI_FILES --many > datasets/organics/molecules-many.smi

The pick takes distinct neutral closed-shell molecules of H C N O F S P Cl from QM9, QM7 and ESOL lists, with a quota
for each number of atoms (most have 5 to 13, a few up to 20). Half of them are changed by one seeded substitution
(H -> F, H -> Cl, O -> S, N -> P, H -> CH3 where room is left), which brings in the elements those lists lack.

The wide list is for variety: one more pick of the same kind, and fragments of approved drugs (cut as BRICS does, Degen
et al., ChemMedChem 3, 1503 (2008), open ends closed with H), without what is in the first list or in a list of benchmarks/.

The list of many is for pretraining on cheap labels (make_xtb.py): both lists, changed small molecules of the first, fragments of
drugs and of ZINC, and QM9, QM7 and ESOL again. Nothing that organics-energy is validated or tested on is in it: a split by
molecule holds out the lowest hashes (mlip.data.split), so the lowest fifth of both lists is left out, stereoisomers included.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from pathlib import Path

from rdkit import Chem, rdBase
from rdkit.Chem import BRICS

SEED = 20
ALLOWED = {1, 6, 7, 8, 9, 15, 16, 17}
SIZES = {5: 6, 6: 14, 7: 24, 8: 34, 9: 40, 10: 44, 11: 44, 12: 40, 13: 34, 14: 20, 15: 16, 16: 12, 17: 8, 18: 6}
QUOTA = {**SIZES, 19: 4, 20: 4}
WIDE_SIZES = {8: 40, 9: 60, 10: 80, 11: 100, 12: 120, 13: 130, 14: 140, 15: 140, 16: 140, 17: 130, 18: 120, 19: 100, 20: 100}
MANY_SIZES = {size: 100 * min(size - 4, 9, 30 - size) for size in range(5, 21)} | {2: 50, 3: 50, 4: 80}
HELD_OUT = 0.2  # more than configs/organics-energy.yaml holds out
DRUGS = ("sider_drugs.smi", "clintox_drugs.smi", "sweetfda_approved.smi")
ZINC = ("zinc250k_test.smi", "zinc250k_valid.smi")
HERE = Path(__file__).resolve().parent
ATOMS = ["[H]", "[C]", "[N]", "[O]", "[F]", "[P]", "[S]", "[Cl]"]
OWN = """
[H][H] N#N F ClF FF ClCl Cl O S N P C [C-]#[O+] O=O OO OF OCl FS SS NN PP NP NO PO SCl PF PCl N#P S=C=S O=C=O O=C=S
O=S=O C#N C#P C=O C=S C=N C=P CF CCl CO CS CN CP FCF ClCCl FC(F)F ClC(Cl)Cl FC(F)(F)F FCCl FC(Cl)Cl FN(F)F FP(F)F
ClP(Cl)Cl ClN FNF ClOCl FOF FSF ClSCl O=CF O=CCl O=C(F)F O=C(Cl)Cl O=C(F)Cl S=C(F)F S=C(Cl)Cl S=CF O=NF O=NCl O=N N=O
O=NO O=[N+]([O-])O O=S(F)F O=S(Cl)Cl O=S(=O)(F)F O=S(=O)(Cl)Cl O=S(=O)(O)O O=S(O)O O=P(F)(F)F O=P(Cl)(Cl)Cl O=[PH3]
O=P(O)(O)O O=P(O)O OP(O)O OP(F)F NP(F)F CP(F)F CP(Cl)Cl PC=O PC#N PCF PCCl PCO PCS FPF ClPCl FP(F)(F)(F)F FS(F)(F)F
FS(F)(F)(F)(F)F CC C=C C#C CC=O CCO COC CSC CSS CSSC CPC CNC CN(C)C CP(C)C CC#N CC#C CC(=O)O CC(=O)N CC(=O)F CC(=O)Cl
CC(=O)S CC(=S)N CC=S C[N+](=O)[O-] CON=O CONC CNO CSO CS(C)=O CS(C)(=O)=O CS(=O)(=O)F CS(=O)(=O)Cl CS(=O)(=O)N
CS(=O)(=O)O CP(C)(C)=O CP(=O)(O)O COP(O)O COP(F)F CC(F)F CCF CCCl CC(Cl)Cl FCCF ClCCCl FCCCl FC=C ClC=C FC=CF ClC=CCl
FC(F)=C ClC(Cl)=C FC(F)=C(F)F ClC(Cl)=C(Cl)Cl FC#C ClC#C FC#N ClC#N OC#N N=C=O N=C=S CN=C=O CN=C=S SC#N CSC#N C=C=O
C=C=C C=C=S O=C=C=C=O N#CC#N C#CC#C C=CC=C C=CC#N C=CC#C OCC=O OCCO OCCF OCCCl OCCS NCCO SCCS NCC(=O)O NC(=O)N NC(=S)N
NC=O NC=S OC=O SC=O COC=O CSC=O O=CC=O NC#N NN=O FC(F)(F)C FC(F)(F)CO FC(F)(F)C=O FC(F)(F)C(=O)O FC(F)(F)SC
ClC(Cl)(Cl)C ClCC=O FCC=O FCC#N ClCC#N FCO ClCO FCOCF ClCOC FCS ClCS C1CC1 C1CO1 C1CS1 C1CN1 C1CP1 C1=CC1 C1CCC1
C1COC1 C1CSC1 C1CNC1 C1CPC1 FC1CC1 ClC1CC1 FC1CO1 ClC1CO1 O=C1CO1 C1CC1=O c1ccoc1 c1ccsc1 c1cc[nH]c1 c1cc[pH]c1
c1c[nH]cn1 c1cscn1 c1cocn1 c1cn[nH]c1 c1csnn1 c1cpccc1 c1ccncc1 c1cncnc1 c1ccnnc1 c1ncncn1 c1ccccc1 Fc1ccccc1
Clc1ccccc1 Oc1ccccc1 Sc1ccccc1 Nc1ccccc1 Pc1ccccc1 Fc1ccoc1 Clc1ccsc1 Fc1ccncc1 Clc1ccncc1 Fc1cccc(F)c1 Fc1ccc(Cl)cc1
N#Cc1ccccc1 O=Cc1ccccc1 C1CCOC1 C1CCSC1 C1CCNC1 C1COCO1 C1CSCS1 C1COCCO1 CC(C)O CCCO CCOC CCS CCP CCN CC(C)=O CCC CC=C
CCC=O CC(C)C CC=CC CC(C)F CC(C)Cl CC(C)S CC(O)C#N NCC#N OCC#N SCC#N PCC#N OCC#C FCC#C ClCC#C FCC=C ClCC=C SCC=C OCC=C
NCC=C PCC=C O=C(O)C(=O)O O=C(Cl)C=C O=C(F)C=C O=CC=C O=CC#C NC(=O)C=C OC=CC=O SC=CC=S OO[H] COO COOC CC(=O)OO CN=NC
CN=O CC=NO CC(C)=NO N=CN FN=NF ClN=O FON=O COF COCl CNF CNCl NOF NSN CSN CSF CSCl CPF CPCl SPO FP=O ClP=O ClP=S
FP(F)(F)=S ClP(Cl)(Cl)=S CP=O CP=S CN=P
"""


def neutral_closed_shell(molecule: Chem.Mol) -> bool:
    """Allowed elements, no charge, no radical, one fragment, no isotope labels."""
    return (
        all(a.GetAtomicNum() in ALLOWED for a in molecule.GetAtoms())
        and not any(a.GetNumRadicalElectrons() or a.GetIsotope() for a in molecule.GetAtoms())
        and Chem.GetFormalCharge(molecule) == 0
        and len(Chem.GetMolFrags(molecule)) == 1
    )


def substitute(molecule: Chem.Mol, rng: random.Random) -> Chem.Mol | None:
    """One random substitution on a molecule with explicit hydrogens; ``None`` where it does not apply."""
    old, new = rng.choice([(1, 9), (1, 17), (1, 9), (1, 17), (8, 16), (7, 15), (1, 6)])
    sites = [
        a.GetIdx()
        for a in molecule.GetAtoms()
        if a.GetAtomicNum() == old and not a.GetFormalCharge() and (old != 1 or a.GetNeighbors()[0].GetAtomicNum() == 6)
    ]
    if not sites:
        return None
    editable = Chem.RWMol(molecule)
    atom = editable.GetAtomWithIdx(rng.choice(sites))
    atom.SetAtomicNum(new)
    if new == 6:
        atom.SetNoImplicit(False)
    changed = editable.GetMol()
    if Chem.SanitizeMol(changed, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return None
    return Chem.MolFromSmiles(Chem.MolToSmiles(Chem.RemoveHs(changed)))


def fragments(folder: Path, names: tuple[str, ...] = DRUGS) -> list[str]:
    """Distinct SMILES of the fragments of the molecules in these files, sorted."""
    found = set()
    for name in names:
        for line in (folder / name).read_text().splitlines():
            molecule = Chem.MolFromSmiles(line.split()[0]) if line.strip() and line[0] != "#" else None
            if molecule is None:
                continue
            for piece in Chem.GetMolFrags(BRICS.BreakBRICSBonds(molecule), asMols=True):
                editable = Chem.RWMol(piece)
                for atom in editable.GetAtoms():
                    if atom.GetAtomicNum() == 0:  # an open end
                        atom.SetAtomicNum(1)
                        atom.SetIsotope(0)
                closed = editable.GetMol()
                if Chem.SanitizeMol(closed, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE:
                    Chem.RemoveStereochemistry(closed)
                    found.add(Chem.MolToSmiles(Chem.RemoveHs(closed)))
    return sorted(found)


def smiles_of(path: Path) -> list[str]:
    """The SMILES of a list."""
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]


def atoms_of(smiles: str) -> int:
    """How many atoms it has, hydrogen included."""
    return Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms()


def flat(smiles: str) -> str:
    """Canonical SMILES without stereochemistry."""
    molecule = Chem.MolFromSmiles(smiles)
    Chem.RemoveStereochemistry(molecule)
    return Chem.MolToSmiles(molecule)


def in_benchmarks() -> set[str]:
    """Canonical SMILES, without stereochemistry, of all lists in benchmarks/."""
    return {flat(s) for path in sorted((HERE.parents[1] / "benchmarks").glob("*.smi")) for s in smiles_of(path)}


def known_elsewhere() -> set[str]:
    """Canonical SMILES, without stereochemistry, of the first list and of all lists in benchmarks/."""
    return in_benchmarks() | {flat(s) for s in smiles_of(HERE / "molecules.smi")}


def held_out(smiles: str) -> bool:
    """Whether a split by molecule with seed 0 may hold it out: its hash is in the lowest ``HELD_OUT`` (mlip.data.split)."""
    return int(hashlib.sha256(f"0 {smiles}".encode()).hexdigest()[:8], 16) < HELD_OUT * 16**8


def pick_many(folder: Path) -> list[str]:
    """What may be learned from of both lists, then changed small molecules, fragments and public ones, to fill ``MANY_SIZES``."""
    rng = random.Random(SEED + 2)
    lists = smiles_of(HERE / "molecules.smi")[len(ATOMS) :] + smiles_of(HERE / "molecules-wide.smi")
    forbidden = in_benchmarks() | {flat(s) for s in lists if held_out(s)}
    found = [s for s in lists if flat(s) not in forbidden]

    def add(lines: list[str], share: float, change: float, largest: int = 20) -> None:
        have = Counter(atoms_of(s) for s in found)
        room = {n: int(share * (count - have[n])) for n, count in MANY_SIZES.items() if n <= largest}
        found.extend(s for s in fill(lines, room, set(found), rng, change, most=3) if flat(s) not in forbidden)

    pieces = fragments(folder, (*DRUGS, *ZINC))
    rng.shuffle(pieces)
    add(OWN.split() * 300, 1.0, 1.0, largest=8)
    add(pieces, 0.5, 0.0)
    add(public(folder, rng) * 3, 1.0, 0.75)
    rng.shuffle(found)
    return found


def pick_wide(folder: Path) -> list[str]:
    """Fragments and changed small molecules, half of each as far as they go, to fill ``WIDE_SIZES``."""
    rng, known = random.Random(SEED + 1), known_elsewhere()
    pieces = fragments(folder)
    rng.shuffle(pieces)
    half = {size: count // 2 for size, count in WIDE_SIZES.items()}
    first = fill(pieces, half, known, rng, 0.0)
    rest = dict(WIDE_SIZES)
    for smiles in first:
        rest[atoms_of(smiles)] -= 1
    picked = first + fill(public(folder, rng), rest, known | set(first), rng, 0.5)
    rng.shuffle(picked)
    return picked


def pick(folder: Path) -> list[str]:
    """Canonical SMILES picked from the public lists to fill ``QUOTA``."""
    rng = random.Random(SEED)
    return fill(public(folder, rng), QUOTA, {Chem.CanonSmiles(s) for s in OWN.split()}, rng, 0.5)


def public(folder: Path, rng: random.Random) -> list[str]:
    """SMILES of the QM9, QM7 and ESOL lists, shuffled."""
    lines: list[str] = []
    for name in ("qm9_30k.smi", "qm7.smi", "esol_delaney.smi"):
        own = [line.split()[0] for line in (folder / name).read_text().splitlines() if line.strip() and line[0] != "#"]
        lines += rng.sample(own, min(len(own), 6000))
    rng.shuffle(lines)
    return lines


def fill(
    lines: list[str], quota: dict[int, int], taken: set[str], rng: random.Random, change: float, most: int = 1
) -> list[str]:
    """Distinct usable molecules of ``lines`` up to ``quota`` of each size, a share ``change`` substituted up to ``most`` times."""
    room = dict(quota)
    found: dict[str, None] = {}
    for line in lines:
        molecule = Chem.MolFromSmiles(line)
        if molecule is not None and rng.random() < change:
            for _ in range(1 if most == 1 else rng.randint(1, most)):
                molecule = molecule and substitute(Chem.AddHs(molecule), rng)
        if molecule is None or not neutral_closed_shell(molecule):
            continue
        smiles, size = Chem.MolToSmiles(molecule), Chem.AddHs(molecule).GetNumAtoms()
        if room.get(size, 0) > 0 and smiles not in found and smiles not in taken:
            room[size] -= 1
            found[smiles] = None
    return list(found)


def main() -> None:
    with rdBase.BlockLogs():
        if sys.argv[2:] == ["--wide"]:
            print(f"# made by make_smiles.py --wide, seed {SEED + 1}: drug fragments, and a pick from QM9, QM7 and ESOL SMILES")
            print("\n".join(pick_wide(Path(sys.argv[1]))))
            return
        if sys.argv[2:] == ["--many"]:
            print(f"# made by make_smiles.py --many, seed {SEED + 2}: both lists without what may be held out, and many more")
            print("\n".join(pick_many(Path(sys.argv[1]))))
            return
        picked = pick(Path(sys.argv[1]))
        print(f"# made by make_smiles.py, seed {SEED}: atoms, our own list, a pick from QM9, QM7 and ESOL SMILES")
        seen: dict[str, None] = {}
        for smiles in OWN.split() + picked:
            molecule = Chem.MolFromSmiles(smiles)
            if molecule is None:
                raise SystemExit(f"bad SMILES {smiles}")
            if Chem.AddHs(molecule).GetNumAtoms() <= 20:
                seen.setdefault(Chem.MolToSmiles(molecule))
        print("\n".join(ATOMS + list(seen)))


if __name__ == "__main__":
    main()
