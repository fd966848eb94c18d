"""What a pickle means, as a digest, for the codec: pickles of the same code get the same digest in every process, and nothing is unpickled.

Three things differ between pickles of the same function: cloudpickle gives each class of ``__main__`` a random tracking id, a string is stored
once or twice depending on which constants the interpreter shares, and a set of strings is stored in the order of this process's hash seed.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
from collections.abc import Collection
from dataclasses import dataclass, field

#: Operations that change the object below their arguments and leave it on the stack.
_CHANGES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


@dataclass(eq=False)
class _Object:
    """What the pickle builds: the operation that makes it, and everything that goes into it."""

    operation: str
    parts: list[_Part] = field(default_factory=list)

    @property
    def is_set(self) -> bool:
        return self.operation in ("EMPTY_SET", "FROZENSET")


#: Longer constants, the weights of a model for example, are kept as their hash.
_LONG = 1 << 16

#: Strings as they are, other constants with the operation that makes them.
_Part = str | bytes | _Object

_MARK = _Object("MARK")


def meaning(data: bytes, tracking_ids: Collection[str]) -> bytes:
    """Digest of what a pickle builds; `tracking_ids` are strings that stand for classes and mean nothing else.

    Reads each operation once; a set of objects costs a walk over each of them more.
    """
    return _digest(_read(data), tracking_ids, frozenset())


def _digest(root: _Part, tracking_ids: Collection[str], sorting: frozenset[int]) -> bytes:
    hashed = hashlib.sha256()
    numbers: dict[int | str, int] = {}  # of objects and tracked classes, in the order in which they are met
    agenda = [root]
    while agenda:
        part = agenda.pop()
        if isinstance(part, str):
            token = part.encode("utf-8", "surrogatepass")
            kind = b"STRING"
            if part in tracking_ids:
                token, kind = str(numbers.setdefault(part, len(numbers))).encode(), b"CLASS"
        elif isinstance(part, bytes):
            token, kind = part, b"CONSTANT"
        elif id(part) in numbers:
            token, kind = str(numbers[id(part)]).encode(), b"SHARED"
        else:
            numbers[id(part)] = len(numbers)
            parts = part.parts
            if part.is_set:
                inner = sorting | {id(part)}
                parts = (
                    [] if id(part) in sorting else sorted(parts, key=lambda each: _digest(each, tracking_ids, inner))
                )
            token, kind = f"{part.operation} {len(parts)}".encode(), b"OBJECT"
            agenda += reversed(parts)
        hashed.update(b"%s:%d:" % (kind, len(token)))
        hashed.update(token)
    return hashed.digest()


def _read(data: bytes) -> _Object:
    """Carry out the operations with names in place of values."""
    stack: list[_Part] = []
    memo: list[_Part] = []
    whole = _Object("PICKLE")
    for opcode, argument, _ in pickletools.genops(_Source(data)):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "MARK":
            stack.append(_MARK)
        elif name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name in ("POP", "POP_MARK"):
            _keep_effects(_taken(opcode, stack), stack, whole)
        elif name == "STOP":
            whole.parts.append(stack.pop())
        elif name in _CHANGES:
            changed, *parts = _taken(opcode, stack)
            assert isinstance(changed, _Object)
            changed.parts += parts if changed.is_set else [name.encode(), *parts]
            stack.append(changed)
        elif isinstance(argument, str) and "UNICODE" in name:
            stack.append(argument)
        elif opcode.stack_before or name.startswith("EMPTY"):
            stack.append(_Object(name, _taken(opcode, stack)))
        else:
            stack.append(_constant(name, argument))
    return whole


def _taken(opcode: pickletools.OpcodeInfo, stack: list[_Part]) -> list[_Part]:
    before = opcode.stack_before
    if pickletools.markobject not in before:
        start = len(stack) - len(before)
        taken = stack[start:]
    else:
        mark = len(stack) - 1
        while stack[mark] is not _MARK:
            mark -= 1
        start = mark - before.index(pickletools.markobject)
        taken = stack[start:mark] + stack[mark + 1 :]
    del stack[start:]
    return taken


def _keep_effects(dropped: list[_Part], stack: list[_Part], whole: _Object) -> None:
    """A call whose result is dropped was made for its effect: cloudpickle fills functions in that way, which then lie on top of the stack."""
    top = stack[-1] if stack else whole
    changed = top if isinstance(top, _Object) and top is not _MARK else whole
    changed.parts += [part for part in dropped if isinstance(part, _Object) and part.operation == "REDUCE"]


def _constant(name: str, argument: object) -> bytes:
    if isinstance(argument, int):
        return f"{name} {argument:x}".encode()  # in decimal Python refuses more than 4300 digits
    if not isinstance(argument, (bytes, bytearray, memoryview)):
        return f"{name} {argument!r}".encode()
    if len(argument) <= _LONG:
        return f"{name} ".encode() + bytes(argument)
    return f"{name} of {len(argument)} bytes ".encode() + hashlib.sha256(argument).digest()


class _Source(io.BytesIO):
    """Gives out long constants without copying them; pickletools asks for each in one read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = memoryview(data)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size <= _LONG:
            return super().read(size)
        end = self.seek(size, io.SEEK_CUR)
        return self._data[end - size : end]  # type: ignore[return-value]  # a view serves wherever pickletools wants bytes
