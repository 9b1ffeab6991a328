"""The project's part of Envoy's proto is Envoy's, field for field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2
from envoy.type.v3 import http_status_pb2
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[2]
PACKAGE = "envoy.service.ext_proc.v3"


def envoys(name: str) -> Any:
    for module in (external_processor_pb2, base_pb2, http_status_pb2):
        if name in module.DESCRIPTOR.message_types_by_name:
            return module.DESCRIPTOR.message_types_by_name[name]
    raise AssertionError(f"Envoy has no message {name}")


def test_every_field_has_the_number_and_type_that_envoy_gives_it() -> None:
    descriptors = descriptor_pb2.FileDescriptorSet()
    descriptors.ParseFromString((ROOT / "rust/picker/src/proto.binpb").read_bytes())
    (file,) = [each for each in descriptors.file if each.package == PACKAGE]
    fields = 0
    for message in file.message_type:
        theirs = envoys(message.name).fields_by_name
        for field in message.field:
            their = theirs[field.name]
            fields += 1
            assert field.number == their.number, f"{message.name}.{field.name}"
            # A varint of an enumeration and of an int32 are one on the wire.
            numbers = {field.TYPE_ENUM, field.TYPE_INT32}
            same = field.type == their.type or {field.type, their.type} == numbers
            assert same, f"{message.name}.{field.name}"
            repeated = field.label == field.LABEL_REPEATED
            assert repeated == their.is_repeated, f"{message.name}.{field.name}"
            if their.message_type and not their.message_type.GetOptions().map_entry:
                assert field.type_name.split(".")[-1] == their.message_type.name
    assert fields >= 50
    modes = processing_mode_pb2.ProcessingMode.BodySendMode
    actions = base_pb2.HeaderValueOption.HeaderAppendAction
    numbers = dict([*modes.items(), *actions.items()])
    for enum in [*file.enum_type, *[e for m in file.message_type for e in m.enum_type]]:
        for value in enum.value:
            assert value.number == numbers[value.name]
    (service,) = file.service
    assert [method.name for method in service.method] == ["Process"]
