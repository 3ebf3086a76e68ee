"""SCF acceleration for PySCF: labels, density fitting, guesses."""
