"""SEAM's losses against values worked by hand, finite differences, and what each may teach."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pmm_ray.method.seam_losses import (
    adaptive_min_pooling,
    classification_loss,
    compared_maps,
    equivariant_cross_regularization,
    equivariant_regularization,
    max_norm,
    seam_losses,
    small_view,
    winner_takes_all,
)

E = 1e-5


def maps(*channels: list[list[float]]) -> Tensor:
    """One image, float64 [1, C, H, W]."""
    return torch.tensor([channels], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def test_max_norm() -> None:
    got = max_norm(maps([[-1.0, 2.0], [4.0, 0.0]], [[3.0, 3.0], [3.0, 3.0]]))
    want = [[[[0, (2 - E) / (4 + E)], [(4 - E) / (4 + E), 0]], [[0, 0], [0, 0]]]]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    shifted = max_norm(maps([[1.0, 2.0, 3.0]]))
    assert shifted[0, 0, 0].tolist() == pytest.approx([0, (1 - E) / (2 + E), (2 - E) / (2 + E)])


def test_classification_takes_the_foreground_only() -> None:
    # means 0 and ln 3: the margins of class 1 (present) and class 2 (absent)
    cam = maps([[9.0, 9.0]], [[1.0, -1.0]], [[2 * math.log(3), 0.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    want = (math.log(2) + math.log(4)) / 2
    assert float(classification_loss(cam, labels)) == pytest.approx(want)


def test_adaptive_min_pooling() -> None:
    refined = maps([[9.0] * 8], [[1, 2, 3, 4, 5, 6, 7, -8]], [[5.0] * 8], [[0.5] * 8])
    labels = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    # class 2 is absent; per pixel the largest of classes 1 and 3 is 1 2 3 4 5 6 7 0.5; a quarter
    # of eight pixels is two: 0.5 and 1
    assert float(adaptive_min_pooling(refined, labels)) == pytest.approx(0.75)
    # negative scores count as nothing, an image without labels asks for nothing
    assert float(adaptive_min_pooling(-refined.abs(), labels)) == 0
    assert float(adaptive_min_pooling(refined, torch.tensor([[1.0, 0, 0, 0]]))) == 0
    # rounded down: a quarter of seven pixels is one
    assert float(adaptive_min_pooling(refined[..., :7], labels)) == pytest.approx(1)


def test_equivariance_counts_absent_classes() -> None:
    first = maps([[7.0, 7.0]], [[0.2, 0.6]], [[0.0, 0.0]])
    second = maps([[0.0, 0.0]], [[0.5, 0.5]], [[0.0, 0.0]])
    assert float(equivariant_regularization(first, second)) == pytest.approx(0.4 / 4)


def test_winner_takes_all_sets_the_background() -> None:
    got = winner_takes_all(maps([[9.0, 9.0, 9.0]], [[0.2, 0.5, 0.0]], [[0.7, 0.5, 0.0]]))
    want = maps([[0.3, 0.5, 1.0]], [[0.0, 0.5, 0.0]], [[0.7, 0.5, 0.0]])
    torch.testing.assert_close(got, want)


def test_cross_equivariance_over_the_largest_entries() -> None:
    # one pixel, ten channels: the top fifth of ten entries are two
    first = torch.zeros(1, 10, 1, 1, dtype=torch.float64)
    second = first.clone()
    first[0, 1], second[0, 2] = 0.9, 0.8
    refined_first, refined_second = first.clone(), second.clone()
    refined_first[0, 0], refined_second[0, 0] = 0.1, 0.4
    # aim of the first: background 0.2, class 2 0.8; it has 0.1 and 0.9 at class 1
    to_first = (0.9 + 0.8) / 2
    # aim of the second: background 0.1, class 1 0.9; it has 0.4 and 0.8 at class 2
    to_second = (0.9 + 0.8) / 2
    got = equivariant_cross_regularization(first, second, refined_first, refined_second)
    assert float(got) == pytest.approx(to_first + to_second)
    third = equivariant_cross_regularization(first, second, refined_first, refined_second, 0.3)
    assert float(third) == pytest.approx((1.7 + 0.1) / 3 + (1.7 + 0.3) / 3)


def test_the_top_entries_are_those_of_each_image() -> None:
    zero = torch.zeros(2, 2, 1, 5, dtype=torch.float64)
    aim = winner_takes_all(zero)
    refined = aim.clone()
    refined[0, 1] += 1.0  # all five foreground entries of image 0 are wrong
    # top 2 of 10 entries per image: image 0 gives 1, image 1 gives 0
    got = equivariant_cross_regularization(zero, zero, refined, aim, 0.2)
    assert float(got) == pytest.approx(0.5)


def test_compared_maps_gate_and_resize() -> None:
    cam = maps([[0.0, 1.0, 2.0]] * 3, [[4.0, 2.0, 0.0]] * 3)
    got = compared_maps(cam, torch.tensor([[1.0, 0.0]]), (2, 2))
    assert got.shape == (1, 2, 2, 2)
    # corners aligned: the corners of the stretched map themselves
    top = (2 - E) / (2 + E)
    torch.testing.assert_close(got[0, 0], torch.tensor([[0, top]] * 2, dtype=torch.float64))
    assert not got[0, 1].any()


def test_the_small_view_of_448_px_is_134_px() -> None:
    image = random(1, 3, 448, 448)
    small = small_view(image)
    assert small.shape == (1, 3, 134, 134)
    assert torch.allclose(
        small[..., [0, -1], :][..., [0, -1]], image[..., [0, -1], :][..., [0, -1]]
    )


LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


def test_the_total_is_the_sum_of_its_parts() -> None:
    cam, refined = random(2, 4, 10, 10) * 2 - 1, random(2, 4, 10, 10, seed=1)
    small, small_refined = random(2, 4, 3, 3, seed=2) * 2 - 1, random(2, 4, 3, 3, seed=3)
    losses = seam_losses(cam, refined, small, small_refined, LABELS)
    labels = torch.cat([torch.ones(2, 1, dtype=torch.float64), LABELS], 1)
    assert float(losses.classification) == pytest.approx(
        float(classification_loss(cam, labels) + classification_loss(small, labels)) / 2
    )
    assert float(losses.minimum) == pytest.approx(
        float(adaptive_min_pooling(refined, labels) + adaptive_min_pooling(small_refined, labels))
        / 2
    )
    a1, a2 = compared_maps(cam, labels, (3, 3)), compared_maps(small, labels, (3, 3))
    assert float(losses.equivariance) == pytest.approx(float((a1 - a2)[:, 1:].abs().mean()))
    assert float(losses.total) == pytest.approx(sum(float(loss) for loss in losses))


@pytest.mark.parametrize("name", ["classification", "minimum", "equivariance"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    def loss(*inputs: Tensor) -> Tensor:
        value: Tensor = getattr(seam_losses(*inputs, LABELS), name)
        return value

    assert torch.autograd.gradcheck(loss, branches())


def branches() -> tuple[Tensor, ...]:
    shapes = [(2, 4, 6, 6), (2, 4, 6, 6), (2, 4, 3, 3), (2, 4, 3, 3)]
    return tuple(
        (random(*shape, seed=i) * 2 - 0.5).requires_grad_() for i, shape in enumerate(shapes)
    )


def test_the_cross_loss_gradient_is_that_of_finite_differences_with_its_aim_held() -> None:
    cam, refined, small, small_refined = branches()

    def loss(first: Tensor, second: Tensor) -> Tensor:
        return seam_losses(cam, first, small, second, LABELS).cross_equivariance

    assert torch.autograd.gradcheck(loss, (refined, small_refined))


class Siamese(nn.Module):
    """A network with the parts of SEAM's: what enters the correlation module is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 4, 1, bias=False)
        self.correlation = nn.Conv2d(5, 4, 1, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.backbone(images))
        cam = self.head(features)
        affinity = torch.relu(self.correlation(features.detach()))
        return cam, affinity * (cam.detach().relu() + 0.1)


@pytest.mark.parametrize(
    ("name", "taught"),
    [
        ("classification", {"backbone", "head"}),
        ("equivariance", {"backbone", "head"}),
        ("minimum", {"correlation"}),
        ("cross_equivariance", {"correlation"}),
    ],
)
def test_what_each_loss_teaches(name: str, taught: set[str]) -> None:
    torch.manual_seed(1)
    network = Siamese()
    images = torch.rand(2, 3, 20, 20)
    losses = seam_losses(*network(images), *network(small_view(images)), LABELS.float())
    getattr(losses, name).backward()
    for part, module in network.named_children():
        gradients = [p.grad for p in module.parameters()]
        moved = any(g is not None and bool(g.abs().sum() > 0) for g in gradients)
        assert moved == (part in taught), part
    if "head" in taught:
        # the background's row of the head is never taught
        gradient = network.head.weight.grad
        assert gradient is not None
        assert not gradient[0].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_norm(torch.zeros(2, 3)), r"\[B, C, H, W\]"),
        (lambda: max_norm(torch.zeros(1, 1, 0, 2)), "not empty"),
        (lambda: max_norm(torch.zeros(1, 1, 2, 2, dtype=torch.int64)), "floating"),
        (lambda: classification_loss(torch.zeros(1, 3, 2, 2), torch.ones(1, 2)), "do not fit"),
        (
            lambda: equivariant_regularization(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 3)),
            "do not fit",
        ),
        (
            lambda: adaptive_min_pooling(torch.zeros(1, 3, 1, 3), torch.ones(1, 3), share=0.25),
            "leaves none",
        ),
        (
            lambda: adaptive_min_pooling(torch.zeros(1, 3, 1, 3), torch.ones(1, 3), share=1.5),
            "leaves none",
        ),
    ],
)
def test_mistakes_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
