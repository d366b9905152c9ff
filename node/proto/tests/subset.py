#!/usr/bin/env python3
"""Prove that our schema is a subset of what the pinned client speaks.

usage: subset.py check DESCRIPTORS   compare an encoded FileDescriptorSet of ours with the client's descriptors
       subset.py rpcs                write known-rpcs.txt for the client that is installed

Run it with the Python of a virtual environment that has the pinned client. `check` prints one line a difference
and exits 1 if there is any. The rules:

- every RPC, message, field, enum and value of ours exists there with the same number, type, label and signature;
- a message or enum that we declare is declared whole;
- the fields of bytes-fields.txt are the only exception: a message there, `bytes` here, and no line is unused;
- known-rpcs.txt has exactly the client's RPCs.
"""

import importlib
import importlib.metadata
import pathlib
import sys

from google.protobuf import descriptor_pb2

HERE = pathlib.Path(__file__).resolve().parent.parent
PINNED = "1.6.4"
MODULES = ("modal_proto.api_pb2", "modal_proto.task_command_router_pb2")
PACKAGES = ("modal.client", "modal.task_command_router")
Field = descriptor_pb2.FieldDescriptorProto
TYPES = {value: name[5:].lower() for name, value in Field.Type.items()}


class Table:
    """What a set of .proto files declares, flat: names to facts that can be compared and printed."""

    def __init__(self, files):
        self.rpcs, self.messages, self.enums = {}, {}, {}
        for file in files:
            for message in file.message_type:
                self._message(message, file.package)
            for enum in file.enum_type:
                self._enum(enum, file.package)
            for service in file.service:
                for method in service.method:
                    self._rpc(method, f"/{file.package}.{service.name}")

    def _rpc(self, method, service):
        self.rpcs[f"{service}/{method.name}"] = "({}{}) -> {}{}".format(
            "stream " if method.client_streaming else "",
            method.input_type.lstrip("."),
            "stream " if method.server_streaming else "",
            method.output_type.lstrip("."),
        )

    def _message(self, message, scope):
        name = f"{scope}.{message.name}"
        self.messages[name] = {field.name: self._field(message, field) for field in message.field}
        for nested in message.nested_type:
            self._message(nested, name)
        for enum in message.enum_type:
            self._enum(enum, name)

    def _enum(self, enum, scope):
        self.enums[f"{scope}.{enum.name}"] = {value.name: str(value.number) for value in enum.value}

    @staticmethod
    def _field(message, field):
        if field.label == Field.LABEL_REPEATED:
            label = "repeated"
        elif field.proto3_optional:
            label = "optional"
        elif field.HasField("oneof_index"):
            label = f"oneof {message.oneof_decl[field.oneof_index].name}"
        else:
            label = "plain"
        packed = field.options.packed if field.options.HasField("packed") else None
        return (field.number, label, field.type_name.lstrip(".") or TYPES[field.type], packed)


def client_files():
    for module in MODULES:
        file = descriptor_pb2.FileDescriptorProto()
        importlib.import_module(module).DESCRIPTOR.CopyToProto(file)
        yield file


def our_files(path):
    files = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(path).read_bytes()).file
    return [file for file in files if file.package in PACKAGES]


def exceptions():
    lines = (HERE / "bytes-fields.txt").read_text().splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


def as_bytes(fact, view):
    """Returns what a field of the client looks like when it is declared as bytes, or None when its type is not `view`."""
    number, label, kind, packed = fact
    if kind != view:
        return None
    return (number, "optional" if label == "plain" else label, "bytes", packed)


def compare(kind, ours, theirs, whole=True):
    """Yields the differences between two tables of names to facts."""
    for name, fact in ours.items():
        if name not in theirs:
            yield f"{kind} {name}: the client has none"
        elif fact != theirs[name]:
            yield f"{kind} {name}: ours is {fact}, the client's is {theirs[name]}"
    for name in theirs if whole else ():
        if name not in ours:
            yield f"{kind} {name}: missing in ours"


def compare_messages(ours, theirs, views):
    used = set()
    for name, fields in ours.items():
        if name not in theirs:
            yield f"message {name}: the client has none"
            continue
        expected = {}
        for field, fact in theirs[name].items():
            path = f"{name}.{field}"
            if path in views:
                used.add(path)
                fact = as_bytes(fact, views[path]) or fact
            expected[path] = fact
        yield from compare("field", {f"{name}.{field}": fact for field, fact in fields.items()}, expected)
    for path in views.keys() - used:
        yield f"bytes-fields.txt: {path} is in no message of ours"


def differences(ours, theirs):
    yield from compare("rpc", ours.rpcs, theirs.rpcs, whole=False)
    yield from compare_messages(ours.messages, theirs.messages, exceptions())
    for name, values in ours.enums.items():
        if name not in theirs.enums:
            yield f"enum {name}: the client has none"
        else:
            yield from compare(f"value of {name}", values, theirs.enums[name])
    if (HERE / "known-rpcs.txt").read_text() != known_rpcs(theirs):
        yield "known-rpcs.txt: not the client's RPCs; write it anew with `subset.py rpcs`"


def known_rpcs(theirs):
    head = f"# Every RPC of the pinned client, modal {PINNED}: names only. `tests/subset.py rpcs` writes this file.\n"
    return head + "".join(f"{path}\n" for path in sorted(theirs.rpcs))


def check(path):
    ours, theirs = Table(our_files(path)), Table(client_files())
    if not ours.messages:
        sys.exit(f"{path} declares nothing of {', '.join(PACKAGES)}")
    found = list(differences(ours, theirs))
    for line in found:
        print(line)
    print(f"{len(ours.rpcs)} of the client's {len(theirs.rpcs)} RPCs are declared, with {len(ours.messages)} messages")
    sys.exit(1 if found else 0)


def main(argv):
    version = importlib.metadata.version("modal")
    if version != PINNED:
        sys.exit(f"this compares with modal {PINNED}, and {sys.executable} has {version}")
    if len(argv) == 2 and argv[0] == "check":
        check(argv[1])
    elif argv == ["rpcs"]:
        (HERE / "known-rpcs.txt").write_text(known_rpcs(Table(client_files())))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
