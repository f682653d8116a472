"""What the adapter relies on in Flower and no public page promises; a failure says what to look at after an upgrade."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, Krum

from fedscale_local import flower_adapter as adapter
from fedscale_local import wire
from fedscale_local.vector import Layout

LAYOUT = Layout(("weight", "bias", "scale", "empty"), ((3, 4), (3,), (), (0, 2)))


@pytest.fixture(autouse=True)
def server() -> None:
    adapter.become_server()


def stock(flat: torch.Tensor) -> ArrayRecord:
    """The record that Flower itself builds from these named tensors."""
    return ArrayRecord({name: Array(view.numpy()) for name, view in LAYOUT.split(flat).items()})


def values(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_process_gets_the_servers_identity_by_three_class_attributes() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("run_id", "node_id", "task_id"):
        assert hasattr(TaskIdentity, name), f"TaskIdentity.{name} is gone: see adapter.become_server"
    message = adapter.message_to(7, RecordDict())
    found = (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id)
    assert found == (1, 1, 7), (
        "Message() no longer takes run and node from TaskIdentity: see adapter.become_server"
    )


def test_a_line_goes_to_the_log_by_the_grids_private_client() -> None:
    import inspect

    from flwr.proto.log_pb2 import PushLogsRequest
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.superlink.grid.http_grid import HttpGrid

    said = "the log of a run is written in another way: see adapter.push_log"
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="none")
    assert isinstance(grid._runtime_client, RuntimeHttpClient), said
    assert list(inspect.signature(RuntimeHttpClient.PushLogs).parameters) == ["self", "request"], said
    assert PushLogsRequest(node=grid.node, run_id=1, logs=["line"]).logs == ["line"], said
    assert isinstance(HttpGrid.run, property), said


def test_a_worker_of_ray_that_ended_is_replaced_where_its_result_is_fetched() -> None:
    import inspect

    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

    said = "Flower's pool of workers is another: see adapter.renew_ray_workers"
    source = inspect.getsource(RayBackend.process_message)
    assert "self.pool.fetch_result_and_return_actor_to_pool(future)" in source, said
    assert "self.pool.add_actor_back_to_pool(future)" in source, said
    assert "self._future_to_actor.pop(future)" in inspect.getsource(BasicActorPool.add_actor_back_to_pool), (
        said
    )
    assert "self.create_actor_fn = " in inspect.getsource(BasicActorPool.__init__), said


def test_a_message_gets_its_id_by_one_private_field_and_the_reply_names_it() -> None:
    message = adapter.stamp(adapter.message_to(7, RecordDict()), "19")
    said = "Metadata._message_id is no longer what message_id reads: see adapter.stamp"
    assert message.metadata.message_id == "19", said
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "19", said
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (7, 1)


@pytest.mark.parametrize("kind", ["train", adapter.STATE, adapter.CHUNK])
def test_messages_are_what_flowers_constructor_makes(kind: str) -> None:
    """The adapter fills their fields itself, and at once."""
    content = RecordDict()
    ours, theirs = adapter.message_to(7, content, kind), Message(content, 7, kind)
    pairs = [(ours, theirs)]
    for message in pairs[0]:
        adapter.stamp(message, "3")
    pairs.append((adapter.reply(content, ours), Message(content, reply_to=theirs)))
    for one, other in pairs:
        assert (one.content, one.has_error()) == (content, False) and vars(one).keys() == vars(other).keys()
        times = ("_created_at", "_ttl")
        told, expected = dict(vars(one.metadata)), dict(vars(other.metadata))
        ends = [tuple(fields.pop(name) for name in times) for fields in (told, expected)]
        assert told == expected, "Message has other fields: see adapter.message_to and adapter.reply"
        assert ends[0] == pytest.approx(ends[1], abs=1.0)


def test_a_message_on_its_way_keeps_the_servers_records_apart_from_the_clients() -> None:
    sent = adapter.stamp(
        adapter.message_to(7, wire.content({"arrays": wire.to_record([(LAYOUT, values())])})), "1"
    )
    received = adapter.private_copy(sent)
    assert received.metadata.message_id == "1"
    del received.content.array_records["arrays"]["bias"]
    received.content["more"] = ConfigRecord({"a": 1})
    assert "bias" in sent.content.array_records["arrays"]
    assert "more" not in sent.content


def test_an_error_reply_has_a_code_and_a_reason() -> None:
    from flwr.common.constant import ErrorCode

    assert hasattr(ErrorCode, "CLIENT_APP_RAISED_EXCEPTION"), (
        "ErrorCode has other names: see adapter.error_reply"
    )
    reply = adapter.error_reply("no disk", adapter.stamp(adapter.message_to(7, RecordDict()), "3"))
    assert reply.has_error() and not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "no disk")
    assert reply.metadata.reply_to_message_id == "3"


def test_a_run_can_be_made_of_its_number() -> None:
    assert adapter.empty_run().run_id == 1, "Run.create_empty is gone: see adapter.empty_run"


def test_a_context_is_made_as_flower_makes_it() -> None:
    context = adapter.new_context(5, {"partition-id": 3}, {"config": "{}"})
    assert isinstance(context, Context)
    assert (context.node_id, context.node_config["partition-id"], context.run_config["config"]) == (
        5,
        3,
        "{}",
    )
    assert len(context.state) == 0


def test_a_client_app_takes_attributes_and_is_called_with_message_and_context() -> None:
    """The engines find `cohort` as an attribute of the app."""
    app = ClientApp()
    app.cohort = len  # type: ignore[attr-defined]
    app.train()(lambda message, context: Message(message.content, reply_to=message))
    message = adapter.stamp(adapter.message_to(7, RecordDict({"c": ConfigRecord({"a": 2})})), "3")
    assert app(message, adapter.new_context(7, {}, {})).content["c"]["a"] == 2  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lazy_array_is_bit_for_bit_flowers_own(dtype: torch.dtype) -> None:
    flat = values(dtype)
    ours, theirs = wire.to_record([(LAYOUT, flat)]), stock(flat)
    assert list(ours) == list(theirs)
    for name in LAYOUT.names:
        lazy, array = ours[name], theirs[name]
        assert (lazy.dtype, lazy.shape, lazy.stype) == (array.dtype, array.shape, array.stype)
        assert lazy.data == array.data
        assert lazy.numpy().tobytes() == array.numpy().tobytes()
        assert lazy.object_id == array.object_id, f"{name}: another object id, so a SuperLink would refuse it"
        assert lazy.deflate() == array.deflate()
        assert pickle.loads(pickle.dumps(lazy)).data == array.data
        assert type(pickle.loads(pickle.dumps(lazy))) is Array
    assert ours.object_id == theirs.object_id
    assert ours.deflate() == theirs.deflate()
    assert ours.count_bytes() == theirs.count_bytes()


def test_a_lazy_record_crosses_the_wire() -> None:
    flat = values()
    ours = wire.to_record([(LAYOUT, flat)])
    arrays = {array.object_id: Array.inflate(array.deflate(), array.children) for array in ours.values()}
    again = ArrayRecord.inflate(ours.deflate(), arrays)
    assert torch.equal(wire.from_record(again, LAYOUT, torch.float32), flat)


def test_a_lazy_record_is_safe_to_change() -> None:
    flat = values()
    record = wire.to_record([(LAYOUT, flat)])
    for array in record.to_numpy_ndarrays():
        array[...] = 0
    for tensor in record.to_torch_state_dict().values():
        tensor.zero_()
    ArrayRecord(dict(record.items()))["bias"].numpy()[:] = 0
    assert torch.equal(flat, values())
    record["bias"] = Array(np.zeros(3, np.float32))
    assert torch.equal(flat, values())
    joined = wire.from_record(record, LAYOUT, torch.float32)
    assert torch.equal(LAYOUT.split(joined)["bias"], torch.zeros(3))


@pytest.mark.parametrize(
    "look",
    [
        lambda record: record,
        lambda record: (list(record), record)[1],
        lambda record: record.copy(),
        copy.copy,
        copy.deepcopy,
        lambda record: pickle.loads(pickle.dumps(record)),
        lambda record: ArrayRecord.inflate(
            record.deflate(), {child.object_id: child for child in record.children.values()}
        ),
    ],
    ids=["not", "listed", "its copy", "copied", "copied deeply", "pickled", "inflated"],
)
def test_a_record_is_the_same_whether_or_not_anybody_has_looked_into_it(look: Any) -> None:
    params, buffers = Layout(("w", "b"), ((2, 3), (3,))), Layout(("mean",), ((2,),))
    values = torch.arange(9.0), torch.tensor([0.5, -1.0])
    plain = ArrayRecord(
        {n: Array(t.numpy()) for n, t in (params.split(values[0]) | buffers.split(values[1])).items()}
    )
    made = wire.to_record([(params, values[0]), (buffers, values[1])])
    untouched = wire.num_bytes(wire.content({"arrays": made})), wire.record_bytes(made)
    record = look(made)
    assert untouched == (wire.num_bytes(wire.content({"arrays": record})), wire.record_bytes(record))
    for layout, vector in zip((params, buffers), values, strict=True):
        assert torch.equal(wire.from_record(record, layout, torch.float32), vector)
        with pytest.raises(ValueError, match=r"float32 .*, expected float64"):
            wire.from_record(record, layout, torch.float64)
    assert torch.equal(wire.from_record(record, Layout(("b",), ((3,),)), torch.float32), values[0][6:])
    assert record.object_id == plain.object_id and list(record) == ["w", "b", "mean"]
    record["b"] = Array(np.zeros(3, dtype=np.float32))
    assert torch.equal(
        wire.from_record(record, params, torch.float32), torch.cat([values[0][:6], torch.zeros(3)])
    )


def test_a_content_is_flowers_own_and_its_views_do_what_flowers_do() -> None:
    arrays = {
        name: wire.to_record([(LAYOUT, values(seed=seed))]) for seed, name in enumerate(("arrays", "more"))
    }
    config, metrics = ConfigRecord({"lr": 0.1}), MetricRecord({"n": 3})

    def both() -> tuple[RecordDict, RecordDict]:
        ours = wire.content(arrays, config, metrics)
        return ours, RecordDict(arrays | {"config": config, "metrics": metrics})

    ours, theirs = both()
    assert ours == theirs and repr(ours) == repr(theirs) and ours.object_id == theirs.object_id
    for kept in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert type(kept) is RecordDict and kept.object_id == theirs.object_id
    for kind in ("array_records", "metric_records", "config_records"):
        view, wanted = getattr(ours, kind), getattr(theirs, kind)
        assert vars(view).keys() | {"__orig_class__"} == vars(wanted).keys() and view == wanted
        assert (type(view), view.allowed_type) == (type(wanted), wanted.allowed_type)
    for content in both():
        view = content.array_records
        view["new"] = arrays["more"]
        del view["more"]
        assert list(content) == ["arrays", "config", "metrics", "new"]
        with pytest.raises(TypeError, match="Expected `ArrayRecord`"):
            view["metrics"] = metrics
        with pytest.raises(TypeError, match="Expected `str`"):
            view[1] = arrays["more"]


@pytest.mark.parametrize("make", [FedAvg, FedMedian, lambda: Krum(num_malicious_nodes=1)])
def test_flowers_strategies_aggregate_lazy_arrays_to_the_same_bits(make: Any) -> None:
    def aggregated(record_of: Any) -> ArrayRecord:
        replies = []
        for client in range(5):
            metrics = MetricRecord({"num-examples": 3 + client, "train-loss": 0.1 * client})
            sent = adapter.stamp(adapter.message_to(2 + client, RecordDict()), str(client))
            content = RecordDict({"arrays": record_of(values(seed=client)), "metrics": metrics})
            replies.append(Message(content, reply_to=sent))
        arrays, _ = make().aggregate_train(1, replies)
        assert arrays is not None
        return arrays

    lazy, plain = aggregated(lambda flat: wire.to_record([(LAYOUT, flat)])), aggregated(stock)
    assert list(lazy) == list(plain)
    assert [a.data for a in lazy.values()] == [a.data for a in plain.values()]


def test_from_record_reads_flowers_own_arrays_and_names_what_is_wrong() -> None:
    record = stock(values())
    assert torch.equal(wire.from_record(record, LAYOUT, torch.float32), values())
    live = wire.from_record(wire.to_record([(LAYOUT, flat := values())]), LAYOUT, torch.float32)
    assert live.data_ptr() == flat.data_ptr(), "in one process nothing is copied"
    with pytest.raises(ValueError, match="'weight' is float32"):
        wire.from_record(record, LAYOUT, torch.float64)
    del record["bias"]
    with pytest.raises(ValueError, match="'bias' is missing"):
        wire.from_record(record, LAYOUT, torch.float32)
    record["bias"] = Array(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"'bias' is float32 \(4,\), expected float32 \(3,\)"):
        wire.from_record(record, LAYOUT, torch.float32)
