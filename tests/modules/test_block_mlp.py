"""The network for whole blocks: sizes, refusals, and that an order within blocks is nothing to it."""

import pytest
import torch

from lightning_privacy.editors.blocks import from_blocks, to_blocks
from lightning_privacy.errors import InputError
from lightning_privacy.modules.classifier import ImageClassifier
from lightning_privacy.modules.networks.block_mlp import BlockMLP


@pytest.mark.parametrize("block", [None, 2, 4])
def test_an_order_within_blocks_is_taken_up_by_the_first_layer(block):
    net = BlockMLP(5, 3, 8, block, width=6, hidden=12).eval()
    x, side = torch.rand(4, 3, 8, 8), block or 8
    order = torch.randperm(3 * side * side, generator=torch.Generator().manual_seed(0))
    shuffled = from_blocks(to_blocks(x, side)[..., order], (8, 8), side)
    before = net(x)
    assert not torch.allclose(net(shuffled), before, atol=1e-4)
    with torch.no_grad():
        net.blocks.weight.copy_(net.blocks.weight.flatten(1)[:, order].view_as(net.blocks.weight))
    assert torch.allclose(net(shuffled), before, atol=1e-5)


def test_it_is_built_by_name_and_refuses_what_does_not_fit():
    module = ImageClassifier("block_mlp", classes=4, image_size=8, network_args={"block": 4, "width": 3})
    module.configure_model()
    assert module.logits({"image": torch.rand(2, 3, 8, 8)}).shape == (2, 4)
    with pytest.raises(InputError, match="8 by 8 pixels and got 12"):
        module.network(torch.rand(1, 3, 12, 12))
    for wrong in ({"block": 3}, {"width": 0}, {"dropout": 1.0}, {"block": 0}):
        with pytest.raises(InputError, match="`block_mlp`"):
            BlockMLP(4, 3, 8, **wrong)
