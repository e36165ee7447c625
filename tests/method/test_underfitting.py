"""Pretended under-fitting against values worked by hand and against finite differences."""

from __future__ import annotations

import pytest
import torch

from pmm_ray.method.underfitting import UnderfittingKind, pretended_underfitting


def loss(values: list[float], kind: UnderfittingKind, beta: float, kappa: float) -> float:
    return float(pretended_underfitting(torch.tensor(values), kind, beta=beta, kappa=kappa))


@pytest.mark.parametrize(
    ("values", "kind", "beta", "kappa", "want"),
    [
        ([0.2, 1.0, 0.0], "clamp", 0.5, 0.5, (0.2 + 0.5) / 3),  # mean 0.4 < beta
        ([0.2, 1.6, 0.0], "clamp", 0.5, 0.5, 0.6),  # mean 0.6: not warm yet
        ([0.5, 0.5], "clamp", 0.5, 0.1, 0.5),  # mean == beta: Eq. 10 keeps the plain mean
        ([0.2, 1.0, 0.0], "none", 0.5, 0.5, 0.4),
        ([0.9, 0.0, 0.0, 0.0], "clamp", 0.5, 0.5, 0.125),  # ignored zeros lower both means
        ([0.9], "clamp", 0.5, 0.5, 0.9),
    ],
)
def test_values_worked_by_hand(
    values: list[float], kind: UnderfittingKind, beta: float, kappa: float, want: float
) -> None:
    assert loss(values, kind, beta, kappa) == pytest.approx(want, rel=1e-6)


def test_the_gradient_is_that_of_finite_differences_and_zero_above_kappa() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(4, 5, generator=generator, dtype=torch.float64) * 0.9
    values.requires_grad_()
    result = pretended_underfitting(values, "clamp", beta=1.0, kappa=0.5)
    (gradient,) = torch.autograd.grad(result, values)
    assert torch.all(gradient[values > 0.5] == 0)
    assert torch.allclose(gradient[values < 0.5], torch.tensor(1 / 20, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda x: pretended_underfitting(x, "clamp", beta=1.0, kappa=0.5), (values,)
    )


def test_bad_arguments_are_named() -> None:
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="loss_map"):
        pretended_underfitting(torch.zeros(0), "clamp", beta=0.5, kappa=0.5)
    with pytest.raises(ValueError, match="beta"):
        pretended_underfitting(ones, "clamp", beta=-1, kappa=0.5)
    with pytest.raises(ValueError, match="kappa"):
        pretended_underfitting(ones, "clamp", beta=0.5, kappa=0)
    with pytest.raises(ValueError, match="unknown kind"):
        pretended_underfitting(ones, "other", beta=0.5, kappa=0.5)  # type: ignore[arg-type]
