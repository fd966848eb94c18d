"""How a model's exception is told: host.py describes it, and whoever runs the query raises it under the class that its user knows."""

from __future__ import annotations

import builtins

from sparkgap_protos.v1 import node_pb2 as pb

from sparkgap_server import sources, tracebacks


def describe(error: BaseException, *, loading: bool) -> pb.ModelFailure:
    """The exception as a message."""
    message = str(error)
    if isinstance(error, ModuleNotFoundError):
        message += (
            f". The model needs the module {error.name!r}, which is not installed on the workers: install it there, or move what "
            "it uses into the file that calls predict_batch_udf, or name the module in modules="
        )
    message += sources.advice_on(error)
    name = type(error).__qualname__
    return pb.ModelFailure(
        loading=loading,
        exception=name,
        message=message,
        traceback=tracebacks.shown(error),
        shown=name if builtin_error(name, message) else f"ModelError: {name}",
    )


def builtin_error(name: str, text: str) -> Exception | None:
    """Python's own exception of this name with this text, where there is one that shows it: KeyError quotes, UnicodeError wants more."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or kind is StopIteration:
        return None
    try:
        error = kind(text)
    except TypeError:
        return None
    return error if str(error) == text else None
