"""The initial guess of an SCF from a fitted electron density: coefficients -> Fock matrix -> density matrix."""

from scf_accel.guess.start import density_matrix, guess_fock, refusal

__all__ = ["density_matrix", "guess_fock", "refusal"]
