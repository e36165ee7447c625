"""What workers share of a network: gradients always, statistics only where they are learnt."""

from __future__ import annotations

import torch
from torch import nn

from pmm_ray.nets.backbone import Backbone, FeatureInfo
from pmm_ray.nets.seam import SeamNetwork
from pmm_ray.runtime.training.ranks import drifting_buffers, synchronise_norms


class Network(nn.Module):
    """A frozen norm, one that learns, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.register_buffer("weights", torch.ones(3), persistent=False)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        self.frozen.eval()
        return self


def test_only_norms_that_learn_are_synchronised() -> None:
    network = Network().train()
    frozen, scale = network.frozen, network.head[1].weight
    synchronise_norms(network)
    assert network.frozen is frozen
    assert type(frozen) is nn.BatchNorm2d
    assert isinstance(network.head[1], nn.SyncBatchNorm)
    assert network.head[1].weight is scale  # the optimiser's
    # and stays so where it has been validated
    assert not network.eval().train().frozen.training


def test_norms_of_a_part_whose_layers_are_taken_over_are_the_networks() -> None:
    """SEAM's backbone calls its own layers; what it calls is synchronised and evaluated, too."""

    class Part(Backbone):
        features = (FeatureInfo("low", 4, 1), FeatureInfo("last", 4, 1))

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward_features(self, images_B3HW: torch.Tensor) -> list[torch.Tensor]:
            low = self.norm(self.stem(images_B3HW))
            return [low, low]

    network = SeamNetwork(Part(), 3, taps=("low", "last"), freeze_norm=False).train()
    synchronise_norms(network)
    assert isinstance(network.norm, nn.SyncBatchNorm)
    assert network.backbone.norm is network.norm
    network.eval()
    before = network.norm.running_mean.clone()
    network.backbone.forward_features(torch.randn(2, 3, 5, 5) + 3)
    assert torch.equal(network.norm.running_mean, before)


def test_only_plain_norms_that_learn_have_buffers_to_share() -> None:
    network = Network().train()
    norm = network.head[1]
    want = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    assert [id(b) for b in drifting_buffers(network)] == [id(b) for b in want]
    synchronise_norms(network)
    assert drifting_buffers(network) == []
