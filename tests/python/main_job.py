"""The main job of Quorate, by a gRPC client that is not ours: grpcio and server reflection.

Usage: main_job.py main_job|deadline HOST:PORT KEYSPACE

Nothing here knows the .proto files: messages and services come from the node's reflection service.
Prints one line per step, and ends with exit code 0 if every answer was as documented.
"""

import sys
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import code_pb2, error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status


class Service:
    """The methods of one service, by name, made from its descriptor."""

    def __init__(self, channel, pool, name):
        self.channel = channel
        self.descriptor = pool.FindServiceByName(name)

    def __getattr__(self, name):
        method = self.descriptor.methods_by_name[name]
        path = f"/{self.descriptor.full_name}/{name}"
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        return make(
            path,
            request_serializer=lambda it: it.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


def error_of(call):
    """The gRPC error of a call that must fail, with its decoded details."""
    try:
        answer = call()
        answer = list(answer) if hasattr(answer, "__next__") else answer
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        expect(status is not None, f"no details: {error}")
        details = {}
        for packed in status.details:
            for kind in (
                error_details_pb2.ErrorInfo,
                error_details_pb2.BadRequest,
                error_details_pb2.RetryInfo,
            ):
                if packed.Is(kind.DESCRIPTOR):
                    details[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
        return error, status, details
    raise AssertionError(f"accepted: {answer}")


def main(address, keyspace):
    channel = grpc.insecure_channel(address)
    grpc.channel_ready_future(channel).result(timeout=30)
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    wanted = {"quorate.v1.KvService", "quorate.v1.AdminService", "grpc.health.v1.Health"}
    expect(wanted <= services, f"reflection lists {services}")
    pool = descriptor_pool.DescriptorPool(database)
    print("reflection: services", *sorted(services))

    def message(name):
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))

    kv = Service(channel, pool, "quorate.v1.KvService")
    health = Service(channel, pool, "grpc.health.v1.Health")
    Key = message("quorate.v1.Key")
    Consistency = message("quorate.v1.Consistency")
    levels = pool.FindEnumTypeByName("quorate.v1.ConsistencyLevel").values_by_name
    quorum = Consistency(level=levels["CONSISTENCY_LEVEL_QUORUM"].number)

    check = message("grpc.health.v1.HealthCheckRequest")(service="quorate.v1.KvService")
    deadline = time.monotonic() + 30
    while health.Check(check, timeout=10).status != 1:
        expect(time.monotonic() < deadline, "the node is not healthy")
        time.sleep(0.05)
    print("health: serving")

    def key(sort_key=b"", partition_key=b"python"):
        return Key(partition_key=partition_key, sort_key=sort_key)

    # Put and get, at a named level, at a raw count, and with the clock carried on.
    Put, Get = message("quorate.v1.PutRequest"), message("quorate.v1.GetRequest")
    put = kv.Put(
        Put(keyspace=keyspace, key=key(b"\x00\xff"), value=b"\x01\x00binary", consistency=quorum),
        timeout=10,
    )
    expect(put.version.clock > 0 and put.version.request_id > 0, put)
    expect(put.participation.required == 2 and len(put.participation.answered) >= 2, put)
    expect(put.participation.overlap, put)
    got = kv.Get(
        Get(
            keyspace=keyspace,
            key=key(b"\x00\xff"),
            consistency=Consistency(replicas=2),
            clock=put.clock,
        ),
        timeout=10,
    )
    expect(got.found and got.value == b"\x01\x00binary" and got.version == put.version, got)
    expect(got.clock >= put.clock, got)
    absent = kv.Get(Get(keyspace=keyspace, key=key(b"nobody wrote this")), timeout=10)
    expect(not absent.found and not absent.HasField("version"), absent)
    print("put, get: the value, its version, and who took part")

    # Trace context comes back.
    trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    _, call = kv.Get.with_call(Get(keyspace=keyspace, key=key()), timeout=10, metadata=[trace])
    expect(trace in [tuple(it) for it in call.initial_metadata()], call.initial_metadata())
    print("trace context: returned")

    # A batch: a result per key, in order.
    Item = message("quorate.v1.BatchWriteItem")
    items = [Item(key=key(b"%03d" % n), put=b"row %d" % n) for n in range(100)]
    items.append(Item(key=Key(), put=b"no key"))
    batch = kv.BatchWrite(
        message("quorate.v1.BatchWriteRequest")(keyspace=keyspace, items=items), timeout=10
    )
    expect(len(batch.results) == 101, len(batch.results))
    expect(all(it.HasField("version") for it in batch.results[:100]), batch.results[:100])
    failed = batch.results[100].error
    expect(failed.reason == "KEY_EMPTY" and failed.code == code_pb2.INVALID_ARGUMENT, failed)
    expect(failed.metadata["outcome"] == "not_applied", failed)
    read = kv.BatchGet(
        message("quorate.v1.BatchGetRequest")(
            keyspace=keyspace, keys=[key(b"042"), key(b"absent"), key(b"007")]
        ),
        timeout=10,
    )
    values = [(it.found.found, it.found.value) for it in read.results]
    expect(values == [(True, b"row 42"), (False, b""), (True, b"row 7")], values)
    print("batches: a result per key")

    # Scans: a range in order, a prefix in reverse, and a token to go on with.
    Scan, Range = message("quorate.v1.ScanRequest"), message("quorate.v1.PartitionScan")

    def rows(**range_fields):
        partition = Range(partition_key=b"python", **range_fields)
        request = Scan(keyspace=keyspace, partition=partition, page_rows=7)
        return [row.key.sort_key for page in kv.Scan(request, timeout=10) for row in page.rows]

    expect(rows(start=b"010", end=b"035") == [b"%03d" % n for n in range(10, 35)], "a range")
    expect(rows(prefix=b"09", reverse=True) == [b"%03d" % n for n in range(99, 89, -1)], "a prefix")
    request = Scan(
        keyspace=keyspace, partition=Range(partition_key=b"python", prefix=b"0"), page_rows=40
    )
    stream = kv.Scan(request, timeout=10)
    first = next(stream)
    stream.cancel()
    request.page_token = first.next_page_token
    rest = [row.key.sort_key for page in kv.Scan(request, timeout=10) for row in page.rows]
    seen = [row.key.sort_key for row in first.rows] + rest
    expect(seen == [b"%03d" % n for n in range(100)], f"resumed: {seen}")
    print("scans: range, prefix in reverse, resumed by token")

    # Delete, and time to live.
    Delete = message("quorate.v1.DeleteRequest")
    gone = kv.Delete(Delete(keyspace=keyspace, key=key(b"042"), consistency=quorum), timeout=10)
    got = kv.Get(Get(keyspace=keyspace, key=key(b"042"), consistency=quorum), timeout=10)
    expect(not got.found and got.version == gone.version, got)
    put = kv.Put(Put(keyspace=keyspace, key=key(b"ttl"), value=b"v", ttl_seconds=3600), timeout=10)
    got = kv.Get(Get(keyspace=keyspace, key=key(b"ttl")), timeout=10)
    expect(got.expires_at_ms == (put.version.clock >> 16) + 3_600_000, got)
    print("delete, time to live")

    # Errors, with their details decoded.
    error, status, details = error_of(
        lambda: kv.Put(Put(keyspace=keyspace, key=key(b"x" * 1025), value=b"v"), timeout=10)
    )
    expect(error.code() == grpc.StatusCode.INVALID_ARGUMENT, error)
    expect(status.code == code_pb2.INVALID_ARGUMENT and status.message == error.details(), status)
    info = details["ErrorInfo"]
    expect((info.domain, info.reason) == ("quorate", "KEY_TOO_LARGE"), info)
    expect((info.metadata["limit"], info.metadata["actual"]) == ("1024", "1025"), info)
    expect(info.metadata["outcome"] == "not_applied", info)
    expect(details["BadRequest"].field_violations[0].field == "key", details)
    error, _, details = error_of(
        lambda: kv.Get(Get(keyspace="nowhere", key=key()), timeout=10)
    )
    expect(error.code() == grpc.StatusCode.NOT_FOUND, error)
    expect(details["ErrorInfo"].reason == "KEYSPACE_NOT_FOUND", details)
    error, _, details = error_of(
        lambda: kv.Scan(Scan(keyspace=keyspace, partition=Range()), timeout=10)
    )
    expect(details["ErrorInfo"].reason == "KEY_EMPTY", details)
    error, _, details = error_of(
        lambda: kv.Put(
            Put(keyspace=keyspace, key=key(), consistency=Consistency(replicas=9)), timeout=10
        )
    )
    expect(details["ErrorInfo"].reason == "INVALID_CONSISTENCY", details)
    print("errors: code, reason, field and numbers")


def deadline(address, keyspace):
    """A write that cannot reach its level in time, while one of three replicas stands still."""
    channel = grpc.insecure_channel(address)
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    kv = Service(channel, pool, "quorate.v1.KvService")
    put = message_factory.GetMessageClass(pool.FindMessageTypeByName("quorate.v1.PutRequest"))()
    put.keyspace, put.key.partition_key, put.value = keyspace, b"late", b"v"
    put.consistency.replicas = 3
    try:
        kv.Put(put, timeout=1)
        raise AssertionError("three of three replicas answered, one of which stands still")
    except grpc.RpcError as error:
        expect(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error)
        status = rpc_status.from_call(error)
        # The node answers a little before the deadline; a busy client may give up first.
        if status is not None:
            info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
            expect(info.reason == "WRITE_TIMEOUT", info)
            expect(info.metadata["outcome"] == "unknown", info)
            expect((info.metadata["required"], info.metadata["received"]) == ("3", "2"), info)
    print("deadline: exceeded, outcome unknown")


if __name__ == "__main__":
    step = {"main_job": main, "deadline": deadline}[sys.argv[1]]
    step(*sys.argv[2:])
    print(f"{sys.argv[1]} is done")
