"""SEAM's network: public names, what is trained by what, and what stays frozen."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pmm_ray.method.seam_losses import seam_losses, small_view
from pmm_ray.nets.backbone import Backbone, FeatureInfo
from pmm_ray.nets.scalenet import ScaleNet
from pmm_ray.nets.seam import SeamNetwork

from .golden import Golden, shapes, unfilled

CLASSES = 4


class Small(Backbone):
    """Three taps, of strides 2, 4 and 4."""

    first_layers = ("stem",)
    features = (
        FeatureInfo("low", 6, 2),
        FeatureInfo("high", 8, 4),
        FeatureInfo("last", 10, 4),
    )

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.middle = nn.Conv2d(6, 8, 3, 2, padding=1)
        self.end = nn.Conv2d(8, 10, 3, padding=1)

    def forward_features(self, images_B3HW: Tensor) -> list[Tensor]:
        low = self.norm(self.stem(images_B3HW)).relu()
        high = self.middle(low).relu()
        return [low, high, self.end(high).relu()]


def small(**options: bool) -> SeamNetwork:
    torch.manual_seed(0)
    return SeamNetwork(Small(), CLASSES, taps=("low", "high"), **options)


def gradients(net: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    loss.backward(retain_graph=True)
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_names_shapes_and_trained_parameters_are_those_of_the_paper_s_network(
    golden: Golden,
) -> None:
    net = unfilled(lambda: SeamNetwork(ScaleNet(), 20, taps=("layer2", "layer3")))
    assert shapes(net) == golden.keys("scalenet101_seam")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 52.99
    trained = [p for p in net.parameters() if p.requires_grad]
    assert round(sum(p.numel() for p in trained) / 1e6, 2) == 52.60
    assert all(p.ndim == 4 for p in trained)


@pytest.mark.parametrize("size", [(33, 50), (48, 48), (7, 90)])
def test_both_maps_have_the_image_s_size(size: tuple[int, int]) -> None:
    net = small().eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        cam, refined = net(images)
        scores = net.cam_scores(images)
    assert cam.shape == refined.shape == (2, 1 + CLASSES, *size)
    assert (refined >= 0).all()
    assert (cam < 0).any()
    assert scores.shape == (2, CLASSES, *(-(-side // 4) for side in size))
    large = torch.nn.functional.interpolate(
        scores, size, mode="bilinear", align_corners=net.align_corners
    )
    assert torch.equal(large, refined[:, 1:])


def test_each_loss_reaches_its_own_parameters() -> None:
    """Classification and equivariance: backbone and fc8; the others: the module alone."""
    net = small(freeze_first=False).train()
    images = torch.randn(2, 3, 64, 64)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    losses = seam_losses(*net(images), *net(small_view(images)), labels)
    module = {"f8_3.weight", "f8_4.weight", "f9.weight"}
    features = {"fc8.weight"} | {
        f"{layer}.{kind}" for layer in ("stem", "middle", "end") for kind in ("weight", "bias")
    }
    for loss, wanted in (
        (losses.classification, features),
        (losses.equivariance, features),
        (losses.minimum, module),
        (losses.cross_equivariance, module),
    ):
        found = gradients(net, loss)
        reached = {name for name, gradient in found.items() if gradient.abs().sum() > 0}
        assert reached == wanted
    background = gradients(net, losses.classification + losses.equivariance)["fc8.weight"][0]
    assert (background == 0).all()


def test_frozen_layers_keep_their_values_and_their_statistics() -> None:
    net = small().train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    cam, refined = net(torch.randn(2, 3, 32, 32))
    (cam.mean() + refined[:, 1].mean()).backward()
    optimizer.step()
    changed = {name for name, t in net.state_dict().items() if not torch.equal(t, before[name])}
    layers = {name.split(".")[0] for name in changed}
    assert layers == {"middle", "end", "fc8", "f8_3", "f8_4", "f9"}
    free = small(freeze_norm=False, freeze_first=False).train()
    free(torch.randn(2, 3, 32, 32))
    assert not torch.equal(free.state_dict()["norm.running_mean"], before["norm.running_mean"])


def test_labels_are_asked_for_only_where_they_are_used() -> None:
    images = torch.randn(1, 3, 32, 32)
    gated, plain = small(gate_labels=True).eval(), small().eval()
    with pytest.raises(ValueError, match="gate_labels"):
        gated(images)
    with pytest.raises(ValueError, match="gate_labels"):
        gated.cam_scores(images)
    labels = torch.tensor([[0.0, 1, 0, 0]])
    with torch.no_grad():
        assert torch.equal(plain(images)[1], plain(images, labels)[1])
        refined = gated(images, labels)[1]
        assert (refined[:, [1, 3, 4]] == 0).all()
        assert (refined[:, 2] > 0).any()


def test_a_copy_is_a_network_of_its_own() -> None:
    net = small().eval()
    other = copy.deepcopy(net)
    assert other.backbone.get_submodule("stem") is other.get_submodule("stem")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = net(images)[1]
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(net(images)[1], want)
        other.load_state_dict(net.state_dict(), strict=True)
        assert torch.equal(other(images)[1], want)
