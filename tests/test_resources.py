"""The preflight: nothing that fits is refused on one node, nothing that does not fit anywhere is let through."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ResourceError
from engine.resources import (
    GIB,
    Capacity,
    Demand,
    Growth,
    Node,
    local_capacity,
    object_store_size,
    planned,
    preflight,
    usable_cpus,
)

LAPTOP = Capacity((Node(2, 0, 16 * GIB),))

cpus = st.integers(0, 40).map(lambda tenths: tenths / 10)
demands = st.builds(
    Demand, st.just("actors"), st.integers(1, 12), cpus, st.integers(0, 2), st.integers(0, 4).map(lambda n: n * GIB)
)
nodes = st.builds(
    Node, st.integers(1, 8).map(float), st.integers(0, 4).map(float), st.integers(1, 16).map(lambda n: n * GIB)
)
capacities = st.builds(
    Capacity,
    st.lists(nodes, min_size=1, max_size=4).map(tuple),
    st.lists(st.builds(Growth, nodes, st.integers(1, 4)), max_size=3).map(tuple),
    st.integers(0, 6),
)


def refusal(wanted: list[Demand], capacity: Capacity) -> ResourceError | None:
    try:
        preflight(wanted, capacity)
    except ResourceError as error:
        return error
    return None


def accepted(wanted: list[Demand], capacity: Capacity) -> bool:
    error = refusal(wanted, capacity)
    if error is not None:
        assert error.problem.endswith(".")
        assert ". " not in error.problem, "one sentence"
        assert error.remedy
    return error is None


def room(demand: Demand, node: Node) -> int:
    pairs = ((demand.cpus * 10, node.cpus * 10), (demand.gpus, node.gpus), (demand.memory, node.memory))
    return min((math.floor(round(have, 6) / round(need, 6) + 1e-9) for need, have in pairs if need), default=10**9)


@given(st.lists(demands, max_size=5), nodes)
def test_on_one_node_exactly_what_sums_up_is_accepted(wanted: list[Demand], node: Node) -> None:
    fits = (
        round(sum(each.count * each.cpus for each in wanted), 6) <= node.cpus
        and sum(each.count * each.gpus for each in wanted) <= node.gpus
        and sum(each.count * each.memory for each in wanted) <= node.memory
    )
    assert accepted(wanted, Capacity((node,))) == fits


@given(demands, st.lists(nodes, min_size=1, max_size=5))
def test_equal_units_are_accepted_exactly_up_to_the_room_of_the_nodes(demand: Demand, there: list[Node]) -> None:
    assert accepted([demand], Capacity(tuple(there))) == (demand.count <= sum(room(demand, node) for node in there))


@given(st.lists(demands, max_size=4), capacities)
def test_what_is_accepted_never_exceeds_what_there_may_be(wanted: list[Demand], capacity: Capacity) -> None:
    if not accepted(wanted, capacity):
        return
    grown = sorted((each.node for each in capacity.growth for _ in range(each.count)), key=lambda node: -node.cpus)
    most = sum(node.cpus for node in (*capacity.now, *grown[: capacity.limit]))
    assert sum(each.count * each.cpus for each in wanted) <= most + 1e-6
    for demand in wanted:
        kinds = [*capacity.now, *(each.node for each in capacity.growth if capacity.limit)]
        assert any(room(demand, node) for node in kinds)


@given(st.lists(demands, max_size=4), capacities)
def test_an_autoscaler_never_hurts(wanted: list[Demand], capacity: Capacity) -> None:
    if accepted(wanted, Capacity(capacity.now)):
        assert accepted(wanted, capacity)


def test_fractional_actors_share_two_cores() -> None:
    wanted = [Demand("learners", 2, 0.5), Demand("engines", 1, 0.7), Demand("rewards", 1, 0.3)]
    preflight(wanted, LAPTOP)
    with pytest.raises(ResourceError, match="rewards"):
        preflight([*wanted[:3], Demand("rewards", 4, 0.3, key="reward.workers")], LAPTOP)


def test_ten_tenths_of_a_cpu_are_one_cpu() -> None:
    preflight([Demand("actors", 10, 0.1), Demand("readers", 3, 1 / 3)], LAPTOP)


def test_the_sentence_names_culprit_wish_offer_and_key() -> None:
    with pytest.raises(ResourceError) as caught:
        preflight([Demand("learners", 4, 1, key="train.workers"), Demand("engines", 1, 0.5)], LAPTOP)
    assert caught.value.problem == (
        "The learners want 4 of 1 CPU each beside 0.5 CPU for engines, and that does not fit this one node "
        "(2 CPUs and 16.0 GiB, no GPU)."
    )
    assert caught.value.remedy == "Set `train.workers` to at most 1."


def test_one_actor_too_large_for_any_node_is_refused_however_many_nodes_there_are() -> None:
    many = Capacity(tuple(Node(4, 0, 8 * GIB) for _ in range(100)), (Growth(Node(4), 100),), 100)
    with pytest.raises(ResourceError, match="Each of the parsers wants 8 CPUs on one node") as caught:
        preflight([Demand("parsers", 1, 8)], many)
    assert "at most 4 CPUs" in caught.value.remedy
    with pytest.raises(ResourceError, match=r"32\.0 GiB"):
        preflight([Demand("engines", 1, 1, 0, 32 * GIB)], Capacity(many.now))


def test_a_gpu_that_is_nowhere_is_said_so() -> None:
    with pytest.raises(ResourceError, match="1 GPU") as caught:
        preflight([Demand("engines", 1, 1, 1)], LAPTOP)
    assert "GPU" in caught.value.remedy


def test_an_actor_that_cannot_be_fewer_is_told_what_share_would_fit() -> None:
    with pytest.raises(ResourceError) as caught:
        preflight([Demand("readers", 3, 0.5), Demand("driver", 1, 1)], LAPTOP)
    assert caught.value.remedy == "At most 2 of them would fit."
    with pytest.raises(ResourceError) as caught:
        preflight([Demand("readers", 1, 0.9), Demand("driver", 1, 1.5)], LAPTOP)
    assert caught.value.remedy == "With 0.5 CPU each they would fit."


def test_what_the_autoscaler_may_add_counts_but_not_beyond_its_limit() -> None:
    growing = Capacity((Node(0),), (Growth(Node(4), 8),), 3)
    preflight([Demand("readers", 12)], growing)
    with pytest.raises(ResourceError, match="3 more the autoscaler may add") as caught:
        preflight([Demand("readers", 13)], growing)
    assert caught.value.remedy == "At most 12 of them would fit."


def test_cpu_work_does_not_take_the_gpu_nodes_that_gpu_work_needs() -> None:
    mixed = Capacity((Node(4, 1), Node(4, 0)))
    preflight([Demand("readers", 4), Demand("engines", 1, 4, 1)], mixed)


def test_an_autoscaling_configuration_becomes_growth_less_what_runs_already() -> None:
    config = {
        "max_workers": 5,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "max_workers": 0},
            "data": {"resources": {"CPU": 4, "memory": GIB}, "max_workers": 4},
            "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2},
        },
    }
    running = [Node(4, 0, GIB)]
    found = planned([Node(0), *running], running, config)
    assert found == Capacity((Node(0), *running), (Growth(Node(4, 0, GIB), 3), Growth(Node(8, 1), 2)), 4)
    assert not accepted([Demand("engines", 3, 1, 1)], found)
    assert accepted([Demand("engines", 2, 1, 1), Demand("readers", 12, 1)], found)
    assert not accepted([Demand("engines", 2, 8, 1), Demand("readers", 13, 1)], found)


def test_this_machine_has_what_it_has() -> None:
    here = local_capacity().now[0]
    assert here.cpus == usable_cpus() >= 1
    assert here.memory > 0
    assert object_store_size() > 0
    assert local_capacity(cpus=0.5).now[0].cpus == 0.5
    assert local_capacity(object_store=0).now[0].memory >= here.memory // 2


@pytest.mark.parametrize("number", [0, -1, math.inf, math.nan])
def test_a_senseless_number_of_cpus_is_refused(number: float) -> None:
    with pytest.raises(ResourceError, match="CPUs"):
        local_capacity(cpus=number)
