"""The tensor `text` of a ModelInferRequest, as texts.

Knows the protocol's two encodings and refuses what is neither; does not know models.
"""

from __future__ import annotations

import struct

from hmi.oip.v1 import open_inference_pb2 as pb
from services.common.errors import InvalidArgument
from services.gateway.domain import Text

_LENGTH = struct.Struct("<I")


def is_raw(request: pb.ModelInferRequest) -> bool:
    """Whether the elements came as bytes; the answer then does too."""
    return bool(request.raw_input_contents)


def version_number(field: str, version: str) -> int:
    """A version's number; 0 if none is named.

    Raises:
        InvalidArgument: Not a number from 1.
    """
    if not version:
        return 0
    if not (version.isascii() and version.isdecimal() and 1 <= int(version) < 1 << 32):
        raise InvalidArgument(field, "must be a version's number, or empty")
    return int(version)


def priority(request: pb.ModelInferRequest) -> int:
    """The parameter `priority`, 0 if there is none.

    Raises:
        InvalidArgument: Not a 32-bit integer.
    """
    if "priority" not in request.parameters:
        return 0
    parameter = request.parameters["priority"]
    value = parameter.int64_param
    if not parameter.HasField("int64_param") or not -(1 << 31) <= value < 1 << 31:
        raise InvalidArgument("parameters[priority]", "must be a 32-bit int64_param")
    return value


def texts(request: pb.ModelInferRequest) -> list[Text]:
    """The texts, or pairs of texts.

    Raises:
        InvalidArgument: Another tensor, datatype or shape; contents missing, twice or of the wrong
            type; bytes that are not UTF-8. The field is named.
    """
    if len(request.inputs) != 1:
        raise InvalidArgument("inputs", "must be one tensor, 'text'")
    tensor = request.inputs[0]
    if tensor.name != "text":
        raise InvalidArgument("inputs[0].name", "must be 'text'")
    if tensor.datatype != "BYTES":
        raise InvalidArgument("inputs[0].datatype", "must be BYTES")
    shape = list(tensor.shape)
    if len(shape) not in (1, 2) or shape[0] < 1 or shape[1:] not in ([], [2]):
        raise InvalidArgument("inputs[0].shape", "must be [batch], or [batch, 2] for text pairs")
    elements, field = _elements(request, tensor)
    expected = shape[0] * len(shape)
    if len(elements) != expected:
        raise InvalidArgument(
            "inputs[0].shape", f"asks for {expected} elements, and {len(elements)} came"
        )
    decoded = [_decoded(element, f"{field}[{i}]") for i, element in enumerate(elements)]
    if len(shape) == 1:
        return [Text(text, None, f"{field}[{i}]", "") for i, text in enumerate(decoded)]
    return [
        Text(decoded[i], decoded[i + 1], f"{field}[{i}]", f"{field}[{i + 1}]")
        for i in range(0, len(decoded), 2)
    ]


def _elements(
    request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor
) -> tuple[list[bytes], str]:
    """The elements, and the path of their list."""
    if not request.raw_input_contents:
        given = [name.name for name, _ in tensor.contents.ListFields()]
        if given != ["bytes_contents"]:
            raise InvalidArgument("inputs[0].contents", "must hold bytes_contents, and only these")
        return list(tensor.contents.bytes_contents), "inputs[0].contents.bytes_contents"
    if tensor.HasField("contents"):
        raise InvalidArgument("raw_input_contents", "must be empty if inputs have contents")
    if len(request.raw_input_contents) != 1:
        raise InvalidArgument("raw_input_contents", "must have one entry for each input")
    return _split(request.raw_input_contents[0]), "raw_input_contents[0]"


def _split(data: bytes) -> list[bytes]:
    """Elements that each follow their length as 4 bytes, little endian."""
    elements = []
    position = 0
    while position < len(data):
        start = position + _LENGTH.size
        if start > len(data):
            raise InvalidArgument("raw_input_contents[0]", "ends within a length")
        (length,) = _LENGTH.unpack_from(data, position)
        position = start + length
        if position > len(data):
            raise InvalidArgument("raw_input_contents[0]", "ends within an element")
        elements.append(data[start:position])
    return elements


def _decoded(element: bytes, field: str) -> str:
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(field, f"is not UTF-8 at byte {error.start}") from error
