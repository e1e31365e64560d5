"""The networks: shapes, sizes, independence of records, names, weights."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.build import build_network, find_network
from lightning_privacy.modules.networks.cifar_resnet import CifarResNet18
from lightning_privacy.modules.networks.head import find_head, head_input
from lightning_privacy.modules.networks.small_cnn import LeNet, SmallCNN
from lightning_privacy.modules.networks.split_cnn import SplitCNN
from lightning_privacy.modules.networks.weights import load_file_weights, pretrained_network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:timm.*")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 10, 28, 32])
@pytest.mark.parametrize("network", [LeNet, SmallCNN])
def test_small_networks_take_their_size_and_no_other(network, size, channels):
    net = network(7, channels, size)
    assert net(torch.rand(2, channels, size, size)).shape == (2, 7)
    with pytest.raises(InputError, match=f"{size} by {size} pixels and got {size + 4}"):
        net(torch.rand(2, channels, size + 4, size + 4))
    with pytest.raises(InputError, match="image_size >= 8"):
        network(7, channels, 7)


def test_the_split_network_is_cut_where_the_client_ends():
    net = SplitCNN(5, 3, 32)
    assert net.first_part(torch.rand(2, 3, 32, 32)).shape == (2, 32, 16, 16)
    assert net.second_part(torch.rand(2, 32, 16, 16)).shape == (2, 256, 2, 2)  # as the paper's code has it
    with pytest.raises(InputError, match="32 by 32 pixels and got 28"):
        net(torch.rand(2, 3, 28, 28))
    with pytest.raises(InputError, match="image_size >= 16"):
        SplitCNN(5, 3, 8)


def test_the_networks_have_their_published_or_stated_sizes():
    def size(net):
        return sum(p.numel() for p in net.parameters())

    assert size(CifarResNet18(10, 3)) == 11_173_962  # what this architecture has everywhere
    assert size(LeNet(10, 1, 8)) == 156 + 2416 + (64 * 120 + 120) + (120 * 84 + 84) + 850
    assert 10_000 <= size(SmallCNN(10, 1, 8)) <= 60_000


def test_small_networks_do_not_normalise():
    for net in (SmallCNN(10, 1, 8), LeNet(10, 1, 8)):
        assert not [m for m in net.modules() if "Norm" in type(m).__name__]
        assert list(net.buffers()) == []


@pytest.mark.parametrize(("norm", "separable"), [("batch", False), ("group", True), ("none", True)])
def test_records_touch_each_other_only_through_batch_norm(norm, separable):
    net = CifarResNet18(4, 3, norm=norm, width=8)
    if norm == "none":  # its branches start at zero, where nothing could be seen
        for block in net.blocks:
            nn.init.normal_(block.conv2.weight, std=0.1)
    images = torch.rand(4, 3, 16, 16)
    alone = net(images[:2])
    assert torch.allclose(net(images)[:2], alone, atol=1e-5) == separable


def test_without_normalisation_every_branch_starts_at_zero_and_trains():
    net = CifarResNet18(4, 3, norm="none", width=8)
    block, x = net.blocks[1], torch.rand(2, 8, 8, 8)
    assert torch.equal(block(x), x)
    loss = nn.functional.cross_entropy(net(torch.rand(4, 3, 16, 16)), torch.arange(4))
    loss.backward()
    assert 0.5 < loss.item() < 5
    assert all(block.conv2.weight.grad.abs().sum() > 0 for block in net.blocks)


def test_an_unknown_norm_is_refused():
    with pytest.raises(InputError, match="batch, group, none"):
        build_network("stock", "cifar_resnet18", 4, 3, 32, {"norm": "layer"})


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("lenet", ("stock", "lenet")),
        ("resnet50", ("torchvision", "resnet50")),  # torchvision before timm
        ("timm:resnet50", ("timm", "resnet50")),
        ("convnext_nano", ("timm", "convnext_nano")),
        ("torchvision:convnext_tiny", ("torchvision", "convnext_tiny")),
        ("torch.nn.Flatten", ("import", "torch.nn.Flatten")),
    ],
)
def test_names_are_looked_for_in_order(asked, found):
    assert find_network(asked) == found


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ("smal_cnn", "Did you mean small_cnn"),
        ("torchvision:resnet51", "Did you mean resnet50"),
        ("timm:convnext_tinny", "Did you mean convnext_tiny"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no network"),
    ],
)
def test_unknown_names_are_guessed(asked, match):
    with pytest.raises(InputError, match=match):
        find_network(asked)


def test_what_cannot_be_built_says_why():
    with pytest.raises(InputError, match="3 channels, but channels is 1"):
        build_network("torchvision", "resnet18", 10, 1, 32, {})
    with pytest.raises(InputError, match="network_args"):
        build_network("stock", "small_cnn", 10, 1, 8, {"depth": 3})
    with pytest.raises(InputError, match="not a class of networks"):
        build_network("import", "torch.nn.functional.relu", 10, 1, 8, {})
    with pytest.raises(InputError, match="cannot be imported"):
        build_network("import", "torch.nn.NoSuchLayer", 10, 1, 8, {})


def reads_like_its_last_layer(net, images, head):
    """Whether the features, times the last layer's weights, are the scores."""
    net.eval()
    with torch.no_grad():
        features = head_input(net, net.get_submodule(head), images)
        layer = net.get_submodule(head)
        return torch.allclose(features @ layer.weight.T + layer.bias, net(images), atol=1e-5)


@pytest.mark.parametrize(
    ("source", "name", "size", "arguments"),
    [
        ("stock", "small_cnn", 8, {}),
        ("stock", "split_cnn", 28, {"width": 4}),
        ("stock", "lenet", 8, {}),
        ("stock", "cifar_resnet18", 8, {"width": 4}),
        ("stock", "cifar_resnet20", 8, {"width": 4}),
        ("stock", "cifar_resnet32", 8, {"width": 4}),
        ("torchvision", "mobilenet_v3_small", 32, {}),
        ("torchvision", "resnet18", 32, {}),
        ("torchvision", "vit_b_16", 32, {"image_size": 32, "num_layers": 1, "hidden_dim": 24, "num_heads": 2, "mlp_dim": 8}),
        ("timm", "convnext_atto", 32, {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
        ("timm", "vit_tiny_patch16_224", 32, {"img_size": 32, "depth": 1}),
        ("timm", "resnet18", 32, {}),
        ("timm", "test_efficientnet", 32, {}),
    ],
)  # fmt: skip
def test_features_times_last_weights_are_the_scores(source, name, size, arguments):
    if name == "vit_b_16":
        from torchvision.models import VisionTransformer

        net = VisionTransformer(32, 16, 1, 2, 24, 8, num_classes=6)
    else:
        net = build_network(source, name, 6, 3, size, arguments)
    assert reads_like_its_last_layer(net, torch.rand(2, 3, size, size), find_head(net, 6))


def test_a_network_without_one_last_layer_has_no_embedding():
    squeeze = build_network("torchvision", "squeezenet1_1", 6, 3, 64, {})
    assert find_head(squeeze, 6) is None
    late = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Softmax(1))
    with pytest.raises(InputError, match="no embedding"):
        head_input(late, late[1], torch.rand(2, 3, 2, 2))


def test_embedding_survives_a_failed_training():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    nn.init.constant_(net[1].weight, float("nan"))
    assert head_input(net, net[1], torch.ones(2, 3, 2, 2)).tolist() == [[1.0] * 12] * 2


def test_a_file_of_weights_starts_the_network(tmp_path):
    source = SmallCNN(10, 1, 8)
    file = str(tmp_path / "weights.safetensors")
    save_file({f"network.{k}": v for k, v in source.state_dict().items()}, file)
    same, statistics = pretrained_network("stock", "small_cnn", file, 10, 1, 8, {})
    assert statistics is None
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in same.state_dict().items())
    other, _ = pretrained_network("stock", "small_cnn", file, 3, 1, 8, {})
    assert torch.equal(other.conv1.weight, source.conv1.weight) and other.head.weight.shape[0] == 3
    with pytest.raises(InputError, match="another shape: conv1.weight"):
        pretrained_network("stock", "small_cnn", file, 10, 3, 8, {})
    with pytest.raises(InputError, match="missing: linear1"):
        pretrained_network("stock", "lenet", file, 10, 1, 8, {})
    with pytest.raises(InputError, match="does not exist"):
        load_file_weights(source, str(tmp_path / "none.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_file_weights(source, str(tmp_path / "torn.safetensors"))


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "pkl"])
def test_a_pickle_of_weights_is_refused_unopened(tmp_path, suffix):
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(InputError, match="a pickle"):
        pretrained_network("stock", "small_cnn", str(file), 10, 1, 8, {})


def test_weights_by_name_say_what_there_is_and_what_to_do_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="IMAGENET1K_V1"):
        pretrained_network("torchvision", "resnet18", "IMAGENET9", 10, 3, 32, {})
    with pytest.raises(InputError, match="timm has no weights 'in9k' of `convnext_atto`; it has d2_in1k"):
        pretrained_network("timm", "convnext_atto", "in9k", 10, 3, 32, {})
    with pytest.raises(InputError, match="no weights by name"):
        pretrained_network("stock", "lenet", "DEFAULT", 10, 3, 32, {})
    with pytest.raises(InputError, match=r"could not be fetched .* connect to the network"):
        pretrained_network("torchvision", "resnet18", "DEFAULT", 10, 3, 32, {})


def test_torchvision_weights_keep_all_but_a_different_last_layer(monkeypatch, tmp_path):
    """Weights in torchvision's own cache are used without a network: here random ones under their names."""
    from torchvision.models import SqueezeNet1_1_Weights, resnet18
    from torchvision.models._api import WeightsEnum

    source = resnet18()
    monkeypatch.setattr(
        WeightsEnum, "get_state_dict", lambda self, **options: given.update(options) or dict(source.state_dict())
    )
    given = {}
    net, (mean, std) = pretrained_network("torchvision", "resnet18", "DEFAULT", 5, 3, 32, {})
    assert given["weights_only"] and given["check_hash"]
    assert torch.equal(net.conv1.weight, source.conv1.weight) and net.fc.weight.shape == (5, 512)
    assert (mean, std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # ImageNet's, as everywhere
    assert "DEFAULT" in SqueezeNet1_1_Weights.__members__
    with pytest.raises(InputError, match="not those of this network"):
        pretrained_network("torchvision", "resnet34", "DEFAULT", 5, 3, 32, {})
