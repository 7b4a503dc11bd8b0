"""Weights on their way to engines: parcels, adapters alone, and what vLLM's own transfer is given."""

from dataclasses import replace

import pytest
import ray
import torch

from engine.errors import HeadraceError
from engine.finetune.lora import with_adapter
from engine.finetune.options import LoraOptions
from engine.models import load_causal_lm
from engine.rlhf.adapters import Bases, merged
from engine.rlhf.native import source
from engine.rlhf.policy import Policy
from engine.rlhf.transport import ObjectStore, unpack
from engine.rlhf.weights import for_engines


def test_buckets_hold_any_type_of_number(cluster):
    given = {"half": torch.randn(3, 4).bfloat16(), "single": torch.randn(5), "part": torch.randn(4, 4)[:, :2]}
    found = dict(unpack(ObjectStore().pack(1, given)))
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)


def test_a_bucket_is_as_large_as_may_be_or_as_one_tensor(cluster, monkeypatch):
    size = 1 << 20
    monkeypatch.setattr("engine.rlhf.transport.BUCKET_BYTES", size)
    some = {str(at): torch.zeros(size // 16) for at in range(5)}  # each a quarter of a bucket
    parcel = ObjectStore().pack(1, {**some, "large": torch.zeros(size // 3)})
    assert [len(ray.get(ref)) for ref in parcel.contents] == [4, 1, 1]


def test_a_tensor_that_is_lost_on_the_way_is_named(cluster):
    parcel = ObjectStore().pack(4, {"a": torch.ones(2), "b": torch.zeros(3)})
    with pytest.raises(HeadraceError, match="c is missing in version 4 of the weights, 1 of 3"):
        dict(unpack(replace(parcel, names=("a", "b", "c"))))


def test_an_adapter_alone_comes_to_the_same(small):
    lm = with_adapter(load_causal_lm(str(small)), LoraOptions(rank=4), layers=range(1, 3))
    torch.manual_seed(1)
    for name, each in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each)
    policy = Policy(lm, frozen=1)
    whole, halves = (for_engines(policy, lm.state_dict(), halves=each) for each in (False, True))
    assert sum(each.numel() for each in halves.values()) < sum(each.numel() for each in whole.values())
    found = dict(merged(halves.items(), Bases(str(small), "float32")))
    assert found.keys() == whole.keys()
    assert all(torch.allclose(found[name], whole[name], atol=1e-6) for name in whole)
    assert any(not torch.equal(each, load_causal_lm(str(small)).state_dict()[name]) for name, each in whole.items())


def test_a_matrix_that_the_file_does_not_have(small):
    with pytest.raises(HeadraceError, match=r"holds no model.none.weight .*rollout.sync: merged"):
        Bases(str(small), "float32")("model.none.weight")


def test_what_the_native_transfer_is_given_agrees_with_itself():
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    given = source(weights)
    sent = NCCLTrainerWeightTransferEngine._checked_iter(given, given.metadata())
    assert [name for name, _ in sent] == ["a", "b"]
    assert [name for name, _ in given] == ["a", "b"], "another round gives them again"
