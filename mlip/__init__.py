"""Equivariant interatomic potentials: train, evaluate, relax, run MD."""
