"""Pretended under-fitting against values worked by hand and against finite differences."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pmm_ray.method.underfitting import (
    UnderfittingKind,
    UnderfittingScope,
    pretended_underfitting,
)

KINDS: tuple[UnderfittingKind, ...] = ("clamp", "pow", "ignore", "reweight")


def mean_loss(*arguments: Any, **options: Any) -> torch.Tensor:
    return pretended_underfitting(*arguments, **options)[0]


def loss(
    values: list[float], kind: UnderfittingKind, beta: float, kappa: float, **more: object
) -> float:
    map = torch.tensor(values, dtype=torch.float64)
    return float(mean_loss(map, kind, beta=beta, kappa=kappa, **more))


@pytest.mark.parametrize(
    ("values", "kind", "beta", "kappa", "want"),
    [
        ([0.2, 1.0, 0.0], "clamp", 0.5, 0.5, (0.2 + 0.5) / 3),  # mean 0.4 < beta
        ([0.2, 1.6, 0.0], "clamp", 0.5, 0.5, 0.6),  # mean 0.6: not warm yet
        ([0.5, 0.5], "clamp", 0.5, 0.1, 0.5),  # mean == beta: Eq. 10 keeps the plain mean
        ([0.2, 1.0, 0.0], "none", 0.5, 0.5, 0.4),
        ([0.9, 0.0, 0.0, 0.0], "clamp", 0.5, 0.5, 0.125),  # ignored zeros lower both means
        ([0.9], "clamp", 0.5, 0.5, 0.9),
        ([0.2, 1.0, 0.0], "ignore", 0.5, 0.5, 0.2 / 3),
        ([0.5, 0.8, 0.0], "ignore", 0.5, 0.5, 0.5 / 3),  # released code: a loss of kappa stays
        ([0.2, 1.6, 0.0], "ignore", 0.5, 0.5, 0.6),
        ([0.25, 0.64, 0.0], "pow", 0.5, 0.5, (0.5 + 0.8 + math.sqrt(1e-9)) / 3),
        ([0.25, 1.44, 0.0], "pow", 0.5, 0.5, 1.69 / 3),
        ([0.2, 1.0, 0.0], "reweight", 0.5, 0.5, (0.2 + 0.5) / 3),
        ([0.2, 1.6, 0.0], "reweight", 0.5, 0.5, 0.6),
    ],
)
def test_values_worked_by_hand(
    values: list[float], kind: UnderfittingKind, beta: float, kappa: float, want: float
) -> None:
    assert loss(values, kind, beta, kappa) == pytest.approx(want, rel=1e-6)


def random_map() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(4, 5, generator=generator, dtype=torch.float64) * 0.9 + 0.02
    ).requires_grad_()


def gradient(values: torch.Tensor, kind: UnderfittingKind, kappa: float = 0.5) -> torch.Tensor:
    result = mean_loss(values, kind, beta=10.0, kappa=kappa)
    return torch.autograd.grad(result, values)[0]


@pytest.mark.parametrize("kind", ["clamp", "pow", "ignore"])
def test_gradients_are_those_of_finite_differences(kind: UnderfittingKind) -> None:
    assert torch.autograd.gradcheck(
        lambda x: mean_loss(x, kind, beta=10.0, kappa=0.5), (random_map(),)
    )


def test_reweighting_has_the_gradient_of_a_loss_with_constant_weights() -> None:
    values = random_map()
    weights = (0.5 / values.detach()).clamp(max=1)
    assert torch.autograd.gradcheck(lambda x: (weights * x).mean(), (values,))
    (want,) = torch.autograd.grad((weights * values).mean(), values)
    torch.testing.assert_close(gradient(values, "reweight"), want)
    # the value is the clamp's
    options = {"beta": 10.0, "kappa": 0.5}
    clamped = mean_loss(values, "clamp", **options)
    torch.testing.assert_close(mean_loss(values, "reweight", **options), clamped)


def test_clamp_and_ignore_train_alike_bit_for_bit() -> None:
    values = torch.cat([random_map().detach().float().flatten(), torch.tensor([0.5, 0.0, 9.0])])
    values.requires_grad_()
    clamped, ignored = gradient(values, "clamp"), gradient(values, "ignore")
    assert torch.equal(clamped, ignored)
    assert torch.all(clamped[values > 0.5] == 0)
    assert torch.all(clamped[values <= 0.5] == 1 / len(values))
    assert not torch.equal(gradient(values, "reweight"), clamped)


def test_clamp_and_ignore_train_a_network_alike() -> None:
    states = []
    for kind in ("clamp", "ignore"):
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3, padding=1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        images, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 4, (2, 8, 8))
        for _ in range(5):
            optimizer.zero_grad()
            loss_map = torch.nn.functional.cross_entropy(net(images), labels, reduction="none")
            mean_loss(loss_map, kind, beta=9.0, kappa=1.0).backward()
            optimizer.step()
        states.append(net.weight.detach())
    assert torch.equal(*states)


def test_each_image_has_its_own_warm_up_in_scope_image() -> None:
    """Means 0.4 and 1.0: the first is warm, the second is not, nor are both together."""
    maps = torch.tensor([[[0.2, 1.0, 0.0]], [[0.4, 1.0, 1.6]]])
    options = {"beta": 0.5, "kappa": 0.5}
    whole = mean_loss(maps, "clamp", scope="worker", **options)
    own = mean_loss(maps, "clamp", scope="image", **options)
    assert float(whole) == pytest.approx(4.2 / 6)
    assert float(own) == pytest.approx((0.2 + 0.5 + 0.0 + 3.0) / 6)


def test_the_mean_of_two_images_decides_in_scope_group_however_many_there_are() -> None:
    """Means 0.4 and 1.0, 0.2 and 0.4: the second pair is warm; all four together are not."""
    maps = torch.tensor([[[0.2, 0.6]], [[0.4, 1.6]], [[0.4, 0.0]], [[0.0, 0.8]]])
    options = {"beta": 0.45, "kappa": 0.3}
    assert torch.equal(mean_loss(maps, "clamp", scope="worker", **options), maps.mean())
    want = (0.2 + 0.6 + 0.4 + 1.6 + 0.3 + 0.0 + 0.0 + 0.3) / 8
    result, share = pretended_underfitting(maps, "clamp", scope="group", **options)
    assert float(result) == pytest.approx(want)
    assert float(share) == 0.5
    # as on two GPUs of two images, and as in two passes
    halves = [mean_loss(half, "clamp", scope="worker", **options) for half in maps.chunk(2)]
    assert float(sum(halves) / 2) == pytest.approx(want)


@pytest.mark.parametrize(
    ("kind", "scope", "beta", "want"),
    [
        ("clamp", "worker", 0.5, 0.0),
        ("clamp", "worker", 0.71, 1.0),
        ("pow", "global", 0.71, 1.0),
        ("clamp", "image", 0.5, 0.5),
        ("none", "worker", 9.0, 0.0),
    ],
)
def test_the_share_that_is_limited(
    kind: UnderfittingKind, scope: UnderfittingScope, beta: float, want: float
) -> None:
    """Means of the images 0.4 and 1.0, of both 0.7."""
    maps = torch.tensor([[[0.2, 1.0, 0.0]], [[0.4, 1.0, 1.6]]], requires_grad=True)
    _, share = pretended_underfitting(maps, kind, beta=beta, kappa=0.5, scope=scope)
    assert float(share) == want
    assert not share.requires_grad


def test_padding_belongs_to_no_image_but_to_the_workers_mean() -> None:
    maps = torch.tensor([[[0.9, 0.3, 0.0, 0.0]]])  # 0.6 of the image, 0.3 with its padding
    labelled = torch.tensor([[[True, True, False, False]]])
    scopes: tuple[UnderfittingScope, ...] = ("worker", "image")
    found = [
        float(mean_loss(maps, "clamp", beta=0.5, kappa=0.5, scope=scope, labelled=labelled))
        for scope in scopes
    ]
    assert found == pytest.approx([0.8 / 4, 1.2 / 4])


def test_an_image_without_labels_is_no_division_by_zero() -> None:
    maps = torch.zeros(1, 2, 2, requires_grad=True)
    labelled = torch.zeros(1, 2, 2, dtype=torch.bool)
    for kind in KINDS:
        result = mean_loss(maps, kind, beta=0.5, kappa=0.5, scope="image", labelled=labelled)
        (gradient,) = torch.autograd.grad(result, maps)
        assert torch.isfinite(result)
        assert torch.isfinite(gradient).all()


def test_global_is_worker_where_there_is_one_worker() -> None:
    maps = random_map()
    for kind in KINDS:
        one, all_ = (
            mean_loss(maps, kind, beta=0.5, kappa=0.5, scope=scope)
            for scope in ("worker", "global")
        )
        assert torch.equal(one, all_)


PROGRAM = """
import sys
import torch
import torch.distributed as dist
from pmm_ray.method.underfitting import pretended_underfitting
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
# means 0.2 and 0.7: 0.53 over all six pixels
maps = [torch.tensor([[0.4, 0.0]]), torch.tensor([[0.6, 0.6, 0.6, 1.0]])][rank]
for scope in ("worker", "global"):
    for beta in (0.5, 0.6):
        print(float(pretended_underfitting(maps, "clamp", beta=beta, kappa=0.3, scope=scope)[0]))
# one image each, means 0.2 and 0.7: the group's is 0.45
maps = [torch.tensor([[0.4, 0.0]]), torch.tensor([[0.6, 0.8]])][rank]
for beta in (0.4, 0.5):
    print(float(pretended_underfitting(maps, "clamp", beta=beta, kappa=0.3, scope="group")[0]))
"""


def test_two_workers_share_their_mean_in_scopes_global_and_group(tmp_path: Path) -> None:
    """Unequal shares: 3.2 / 6 = 0.53 decides for both, whatever their own means 0.2 and 0.7.

    A group of two goes on at the next worker, where each has one image.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = ([float(v) for v in p.communicate(timeout=120)[0].split()] for p in processes)
    assert first == pytest.approx([0.15, 0.15, 0.2, 0.15, 0.2, 0.15])
    assert second == pytest.approx([0.7, 0.7, 0.7, 0.3, 0.7, 0.3])


def test_bad_arguments_are_named() -> None:
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="loss_map"):
        mean_loss(torch.zeros(0), "clamp", beta=0.5, kappa=0.5)
    with pytest.raises(ValueError, match="beta"):
        mean_loss(ones, "clamp", beta=-1, kappa=0.5)
    with pytest.raises(ValueError, match="kappa"):
        mean_loss(ones, "clamp", beta=0.5, kappa=0)
    with pytest.raises(ValueError, match="unknown kind"):
        mean_loss(ones, "other", beta=0.5, kappa=0.5)
    with pytest.raises(ValueError, match="unknown scope"):
        mean_loss(ones, "clamp", beta=0.5, kappa=0.5, scope="all")
    with pytest.raises(ValueError, match="3 images make no whole number of groups of 2"):
        mean_loss(torch.ones(3, 4), "clamp", beta=0.5, kappa=0.5, scope="group")
