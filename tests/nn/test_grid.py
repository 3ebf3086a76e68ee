"""Sphere grid, grid mixing, norm and linear maps: exactness, equivariance, measured aliasing."""

import pytest
import torch

from mlip.nn import EquivariantLinear, EquivariantRMSNorm, GridMix, SphereGrid, SphericalHarmonics
from mlip.nn.irreps import num_components
from mlip.testing import grid_tolerance, tolerance


def random_rotation():
    """A rotation in float64 (e3nn's rand_matrix rounds to float32)."""
    generator = torch.randn(3, 3, dtype=torch.float64)
    return torch.linalg.matrix_exp(generator - generator.T)


def wigner(l_max, matrix):
    """D with Y(R x) = D Y(x), from the harmonics themselves (e3nn's D carries float32 constants)."""
    points = torch.nn.functional.normalize(torch.randn(200, 3, dtype=torch.float64), dim=-1)
    harmonics = SphericalHarmonics(l_max).double()
    return torch.linalg.lstsq(harmonics(points), harmonics(points @ matrix.T)).solution.T


@torch.no_grad()
def equivariance_error(layer, l_max, channels, matrix):
    """RMS of f(D x) - D f(x) relative to the RMS of f(x)."""
    x = torch.randn(64, num_components(l_max), channels, dtype=torch.float64)
    d = wigner(l_max, matrix)
    y = layer(x)
    d_out = d[: y.shape[1], : y.shape[1]]
    return float((layer(d @ x) - d_out @ y).square().mean().sqrt() / y.square().mean().sqrt())


@pytest.mark.parametrize("l_max", [1, 2, 3, 4])
def test_grid_round_trip_and_exact_products(l_max):
    """from_grid inverts to_grid, and a product of two functions is projected exactly: a finer grid changes nothing."""
    torch.manual_seed(0)
    coarse, fine = SphereGrid(l_max).double(), SphereGrid(l_max, 3.0).double()
    a, b = torch.randn(2, num_components(l_max), 3, dtype=torch.float64)
    torch.testing.assert_close(coarse.from_grid @ (coarse.to_grid @ a), a)
    product = [g.from_grid @ ((g.to_grid @ a) * (g.to_grid @ b)) for g in (coarse, fine)]
    torch.testing.assert_close(product[0], product[1])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_product_grid_is_exactly_equivariant(l_max, sign):
    torch.manual_seed(0)
    layer = GridMix(l_max, 8, 8, "product").double()
    assert equivariance_error(layer, l_max, 8, sign * random_rotation()) < 1e-12


@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_silu_grid_error_is_bounded_and_falls_with_oversampling(l_max):
    """The aliasing error of the non-polynomial network, against the tolerance table."""
    torch.manual_seed(0)
    matrix = random_rotation()
    errors = []
    for oversampling in (1.0, 2.0, 3.0):
        torch.manual_seed(1)
        layer = GridMix(l_max, 8, 8, "silu", oversampling).double()
        errors.append(equivariance_error(layer, l_max, 8, matrix))
        print(f"l_max {l_max} oversampling {oversampling}: relative equivariance error {errors[-1]:.2e}")
        assert errors[-1] < grid_tolerance(oversampling)
    assert errors[2] < errors[1] < errors[0]
    assert errors[0] > 1e-8  # the measurement sees something


def test_broken_grid_is_caught():
    """A grid that weights its points wrongly is no longer equivariant."""
    layer = GridMix(2, 8, 8, "product").double()
    layer.grid.from_grid[:, ::2] *= 1.1
    assert equivariance_error(layer, 2, 8, random_rotation()) > 1e-3


def test_norm_and_linear_commute_with_rotations():
    torch.manual_seed(0)
    matrix = -random_rotation()
    norm, linear = EquivariantRMSNorm(3, 8).double(), EquivariantLinear(3, 8, 8).double()
    with torch.no_grad():
        norm.gain.uniform_(0.5, 2.0)
    assert equivariance_error(norm, 3, 8, matrix) < tolerance("rotation", "float64")
    assert equivariance_error(linear, 3, 8, matrix) < tolerance("rotation", "float64")


def test_norm_is_per_node_and_finite_at_zero():
    norm = EquivariantRMSNorm(2, 4).double()
    x = torch.randn(3, 9, 4, dtype=torch.float64)
    torch.testing.assert_close(norm(x)[:1], norm(x[:1]))
    torch.testing.assert_close(norm(1000 * x), norm(2000 * x), rtol=1e-6, atol=1e-6)
    assert torch.equal(norm(torch.zeros_like(x)), torch.zeros_like(x))


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="relu"):
        GridMix(1, 4, 4, "relu")
