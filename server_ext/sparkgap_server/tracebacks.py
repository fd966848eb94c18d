"""What users are shown of a traceback: their own code, without the frames around and below it; train/failure.py and predict/failure.py ask.

A bug of ours keeps all its frames. What we refuse by a sentence, a column that does not fit the model for example, has no frames at all: the
sentence says everything, and the line of ours that says it nothing.
"""

from __future__ import annotations

import dis
import os
import traceback
from types import TracebackType

import sparkgap_protos

_OWN = tuple(os.path.join(os.path.dirname(file), "") for file in (__file__, sparkgap_protos.__file__))


def shown(error: BaseException) -> str:
    """The text of an exception with its causes, from the first frame of user code on."""
    part = error.__traceback__
    while part is not None and (_is_own(part) or part.tb_frame.f_code.co_filename == "<frozen runpy>"):
        part = part.tb_next
    if part is None and _is_refusal(error):
        return "".join(traceback.format_exception_only(type(error), error))
    return "".join(traceback.format_exception(type(error), error, part or error.__traceback__))


def _is_own(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_OWN)


def _is_refusal(error: BaseException) -> bool:
    """Raised by a statement of ours with a sentence, and not by what such a line has called: `assert` and lookups are bugs where they fail."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not isinstance(error, (ValueError, TypeError, RuntimeError)):
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
