"""Radial bases vanish smoothly at the cutoff; harmonics match e3nn."""

import math

import pytest
import torch
from e3nn import o3

from mlip.nn import PolynomialEnvelope, SphericalHarmonics, make_radial_basis
from mlip.nn.radial import RADIAL_KINDS
from mlip.testing import tolerance


def derivatives(function, r, order):
    """Values of the first ``order`` derivatives of every output at ``r``."""
    r = torch.tensor([r], dtype=torch.float64, requires_grad=True)
    rows = []
    for k in range(function(r).shape[-1]):
        value = function(r)[..., k].sum()
        row = [value.item()]
        for _ in range(order):
            (value,) = torch.autograd.grad(value.sum(), r, create_graph=True)
            row.append(value.item())
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("kind", RADIAL_KINDS)
def test_value_and_two_derivatives_vanish_at_the_cutoff(kind):
    torch.manual_seed(0)
    basis = make_radial_basis(kind, 5.0).double()
    assert derivatives(basis, 5.0 - 1e-9, 2).abs().max() < 1e-6
    assert derivatives(basis, 5.0 - 0.5, 2).abs().max() > 1e-3
    assert (basis(torch.tensor([5.0, 5.1, 9.0], dtype=torch.float64)) == 0).all()


@pytest.mark.parametrize("kind", RADIAL_KINDS)
def test_basis_is_twice_continuously_differentiable(kind):
    """No jump of the second derivative anywhere, knots included."""
    torch.manual_seed(0)
    basis = make_radial_basis(kind, 5.0).double()
    for r in [0.5, 1.0, 2.0, 3.0, 4.0]:
        left, right = derivatives(basis, r - 1e-6, 2), derivatives(basis, r + 1e-6, 2)
        assert (left - right).abs().max() < 1e-3


@pytest.mark.parametrize("p", [4, 6, 8])
def test_envelope_is_the_published_polynomial(p):
    x = torch.linspace(0, 1, 50, dtype=torch.float64)
    published = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    torch.testing.assert_close(PolynomialEnvelope(3.0, p)(3 * x), published)


def test_bsplines_sum_to_the_envelope():
    """Cubic B-splines are a partition of unity over the whole interval."""
    basis = make_radial_basis("bspline", 4.0, 9).double()
    r = torch.linspace(0.01, 3.99, 50, dtype=torch.float64)
    torch.testing.assert_close(basis(r).sum(-1) / basis.norm, PolynomialEnvelope(4.0)(r))


def test_bspline_needs_enough_functions():
    with pytest.raises(ValueError, match="at least 5"):
        make_radial_basis("bspline", 4.0, 3)


def test_bessel_formula():
    basis = make_radial_basis("bessel", 4.0, 5).double()
    r = 1.3
    x = r / 4.0
    wanted = [math.sqrt(0.5) * math.sin(n * math.pi * x) / x for n in range(1, 6)]
    envelope = PolynomialEnvelope(4.0)(torch.tensor(r, dtype=torch.float64))
    got = basis(torch.tensor([r], dtype=torch.float64))[0]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64) * envelope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_harmonics_match_e3nn(dtype):
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(50, 3, dtype=dtype), dim=-1)
    ours = SphericalHarmonics(4).to(dtype)(unit)
    theirs = o3.spherical_harmonics([0, 1, 2, 3, 4], unit.double(), False, "component")
    assert (ours.double() - theirs).abs().max() < tolerance("spherical_harmonics", str(dtype))
