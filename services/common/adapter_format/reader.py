"""Takes tensors out of a container by name and shape, and knows which were never taken."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.adapter_format.container import TensorFile
from services.common.errors import InvalidArgument


class Reader:
    """One pass over a version's tensors.

    Args:
        tensors: The container.
    """

    def __init__(self, tensors: TensorFile) -> None:
        self.tensors = tensors
        self._rest = set(tensors)

    @property
    def rest(self) -> list[str]:
        """Names not taken yet, sorted."""
        return sorted(self._rest)

    def take(self, name: str, *shape: int) -> str:
        """The name of a tensor that is there and has this shape.

        Raises:
            InvalidArgument: It is missing, or its shape differs.
        """
        self.check_present(name)
        found = self.tensors.shape(name)
        if found != shape:
            raise InvalidArgument(
                f"tensors[{name}].shape",
                f"is {list(found)}, this base and configuration need {list(shape)}",
                reason="WRONG_SHAPE",
            )
        self._rest.discard(name)
        return name

    def take_first(self, names: Sequence[str], *shape: int) -> str:
        """`take` of the first name that is there."""
        return self.take(next((name for name in names if name in self.tensors), names[0]), *shape)

    def drop(self, name: str) -> None:
        """Take a tensor that changes nothing, whatever its shape."""
        self._rest.discard(name)

    def check_present(self, name: str) -> None:
        if name not in self.tensors:
            raise InvalidArgument(f"tensors[{name}]", "is missing", reason="MISSING_TENSOR")

    def check_all_taken(self) -> None:
        """Refuse tensors that nothing uses.

        Raises:
            InvalidArgument: Names the first one.
        """
        if self._rest:
            raise InvalidArgument(
                f"tensors[{self.rest[0]}]",
                f"nothing uses it ({len(self._rest)} such tensors): another base, or an "
                "unsupported kind of adapter",
                reason="UNUSED_TENSOR",
            )
