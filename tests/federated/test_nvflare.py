"""What a client of NVIDIA FLARE may send: the check alone, and in FLARE's own filter where it is installed."""

import importlib.util

import numpy as np
import pytest
import torch

from lightning_privacy.errors import InputError
from lightning_privacy.federated.deny import LeakRefusedError
from lightning_privacy.federated.nvflare import Outgoing
from lightning_privacy.federated.private_state import PrivateState
from lightning_privacy.secrets import KeyVault

KEY = torch.sin(torch.arange(64.0) * 1.7)
SENT = {"head.weight": np.ones((2, 64), np.float32), "head.bias": np.zeros(2, np.float32)}


@pytest.fixture
def outgoing():
    made = Outgoing("client", ["val/loss"])
    made.begin(SENT)
    return made


def test_what_came_may_go_back_with_numbers_beside_it(outgoing):
    for kind in ("WEIGHTS", "WEIGHT_DIFF"):
        outgoing.check(
            kind, {"head.bias": np.ones(2)}, {"NUM_STEPS_CURRENT_ROUND": 3, "initial": {"a": 0.5}, "how": "FULL"}
        )
    outgoing.check("METRICS", {"val/loss": np.float32(0.5)}, {})
    outgoing.search({"w": torch.rand(64)}, {"key": KEY})


@pytest.mark.parametrize(
    ("kind", "data", "meta", "words"),
    [
        ("WEIGHTS", {"lock.key": KEY}, {}, "lock.key: the server did not send"),
        ("WEIGHT_DIFF", {"head.bias": np.ones(64)}, {}, "in other shapes"),
        ("METRICS", {"val/loss": KEY.numpy()}, {}, "single numbers"),
        ("METRICS", {"k0": 0.1}, {}, r"\['k0'\]"),
        ("APP_DEFINED", {"any": 1}, {}, "of the kind APP_DEFINED"),
        ("WEIGHTS", {}, {"key": KEY}, "`meta.key`, a Tensor"),
        ("WEIGHTS", {}, {"key": KEY.tolist()}, "`meta.key` with 64 entries"),
        ("WEIGHTS", {}, {"key": {str(i): v for i, v in enumerate(KEY.tolist())}}, "64 entries"),
        ("WEIGHTS", {}, {"key": "x" * 257}, "`meta.key`, a str"),
        ("WEIGHTS", {}, {"key": KEY.numpy().tobytes()}, "`meta.key`, a bytes"),
    ],
)
def test_anything_else_stays(outgoing, kind, data, meta, words):
    with pytest.raises(LeakRefusedError, match=words):
        outgoing.check(kind, data, meta)


def test_a_task_without_weights_asks_for_none(outgoing):
    outgoing.begin({})
    with pytest.raises(LeakRefusedError, match="did not send"):
        outgoing.check("WEIGHTS", {"head.bias": np.ones(2)}, {})


def test_a_secret_inside_a_weight_is_found(outgoing):
    weight = np.ones((2, 64), np.float32)
    weight[1] = KEY.numpy()
    outgoing.check("WEIGHTS", {"head.weight": weight}, {})
    with pytest.raises(LeakRefusedError, match="holds a secret"):
        outgoing.search({"DXO": {"data": {"head.weight": weight}}}, {"key": KEY})


@pytest.mark.skipif(importlib.util.find_spec("nvflare") is not None, reason="NVIDIA FLARE is installed")
def test_without_flare_the_filter_says_what_to_install():
    import lightning_privacy.federated.nvflare as adapter

    with pytest.raises(InputError, match="lightning-privacy\\[nvflare\\]"):
        _ = adapter.DefaultDenyFilter


class TestInFlare:
    @pytest.fixture
    def flare(self):
        return pytest.importorskip("nvflare", reason="needs the extra `nvflare`")

    @pytest.fixture
    def ask(self, flare, tmp_path):
        """Carry out a task as FLARE's client does: the event, then the filter on the result."""
        from nvflare.apis.dxo import DXO, DataKind
        from nvflare.apis.event_type import EventType
        from nvflare.apis.fl_constant import FLContextKey
        from nvflare.apis.fl_context import FLContext

        from lightning_privacy.federated.nvflare import DefaultDenyFilter

        private = PrivateState(tmp_path / "private")
        KeyVault.create(private.folder / "keys.safetensors").put("key", KEY)
        made = DefaultDenyFilter(str(private.folder), ["val/loss"])
        context = FLContext()
        context.set_prop(
            FLContextKey.TASK_DATA, DXO(DataKind.WEIGHTS, dict(SENT)).to_shareable(), private=True, sticky=False
        )
        made.handle_event(EventType.BEFORE_TASK_EXECUTION, context)
        return lambda result: made.process(result, context)

    def test_honest_results_pass_unchanged(self, ask):
        from nvflare.apis.dxo import DXO, DataKind, from_shareable

        weights = DXO(DataKind.WEIGHT_DIFF, {"head.bias": np.ones(2)}, {"NUM_STEPS_CURRENT_ROUND": 2})
        assert from_shareable(ask(weights.to_shareable())).data["head.bias"].tolist() == [1, 1]
        both = {"a": weights, "b": DXO(DataKind.METRICS, {"val/loss": 0.5})}
        assert set(from_shareable(ask(DXO(DataKind.COLLECTION, both).to_shareable())).data) == {"a", "b"}

    def test_leaks_do_not(self, ask):
        from nvflare.apis.dxo import DXO, DataKind
        from nvflare.apis.shareable import Shareable

        inside = np.ones((2, 64), np.float32)
        inside[0] = KEY.numpy()
        beside = DXO(DataKind.WEIGHTS, {"head.bias": np.ones(2)}).to_shareable()
        beside["more"] = KEY.numpy()
        plain = Shareable()
        plain["weights"] = {"head.bias": np.ones(2)}
        for result, words in (
            (DXO(DataKind.WEIGHTS, {"lock.key": KEY.numpy()}).to_shareable(), "did not send"),
            (DXO(DataKind.COLLECTION, {"a": DXO(DataKind.WEIGHTS, {"x": np.ones(1)})}).to_shareable(), "did not send"),
            (DXO(DataKind.WEIGHTS, {}, {"k": KEY.tolist()}).to_shareable(), "64 entries"),
            (DXO(DataKind.WEIGHTS, {"head.weight": inside}).to_shareable(), "holds a secret"),
            (beside, "beside the DXO"),
            (plain, "no DXO"),
        ):
            with pytest.raises(LeakRefusedError, match=words):
                ask(result)

    def test_of_a_failed_result_the_return_code_alone_is_left(self, ask):
        from nvflare.apis.shareable import make_reply

        failed = make_reply("EXECUTION_EXCEPTION")
        failed["DXO"] = {"key": KEY}
        left = ask(failed)
        assert left.get_return_code() == "EXECUTION_EXCEPTION" and "DXO" not in left
