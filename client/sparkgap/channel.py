"""The only user of pyspark's client internals: sends commands and questions as extension messages and gives out the replies."""

from __future__ import annotations

import platform
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from sparkgap_protos import PROTOCOL
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap import background
from sparkgap.errors import (
    ExtensionError,
    PlanError,
    ProtocolError,
    SessionEndedError,
    SparkgapError,
    UnreachableError,
    VersionError,
    refusal,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from pyspark.sql.connect.client import SparkConnectClient
    from pyspark.sql.connect.session import SparkSession

#: How Spark says that a session is over, on either side. It reads SESSION_NOT_FOUND out of an answer to a stream that it takes up again, too.
_ENDED = re.compile(r"INVALID_HANDLE\.SESSION_\w+|NO_ACTIVE_SESSION|incorrect server side session identifier")

_MISSING = re.compile(r"No handler found for extension|CONNECT_INVALID_PLAN\.(EXTENSION|NO_HANDLER)", re.IGNORECASE)

#: Of gRPC's words on a connection that failed: what the last address said, or all of them.
_DETAILS = (re.compile(r'last error: \w+: (?:ipv[46]:\S+ )?([^"]*?)[";]'), re.compile(r'details = "([^"]*)"'))

#: Spark Connect takes requests of 128 MiB (spark.connect.grpc.maxInboundMessageSize); the rest is for what stands around a plan.
_MAX_PLAN_BYTES = 120 << 20


def client_name() -> str:
    """Who asks, for the server's log and for errors about versions."""
    from sparkgap import __version__

    return f"sparkgap {__version__}, Python {platform.python_version()}"


def connect_session(session: Any = None) -> SparkSession:
    """The given session, or this process's active one, if it is one of Spark Connect.

    Raises
    ------
    PlanError
        There is no session.
    ExtensionError
        It is a classic session, inside this process.
    """
    from pyspark.sql.connect.session import SparkSession

    if session is None:
        session = SparkSession.getActiveSession() or SparkSession._get_default_session() or _classic_session()
    if session is None:
        raise PlanError(
            'no active Spark session: create one with SparkSession.builder.remote("sc://HOST:PORT").getOrCreate(), '
            "or pass spark="
        )
    if not isinstance(session, SparkSession):
        raise ExtensionError(
            f"sparkgap needs a Spark Connect session, this is a {type(session).__module__}.{type(session).__qualname__}: "
            'create it with SparkSession.builder.remote("sc://HOST:PORT").getOrCreate()'
        )
    return session


def _classic_session() -> Any:
    import sys

    module = sys.modules.get("pyspark.sql.classic.session") or sys.modules.get("pyspark.sql.session")
    return None if module is None else module.SparkSession.getActiveSession()


@contextmanager
def connection(url: str, seconds: float = 8.0) -> Iterator[SparkSession]:
    """A session for one command of the command line, stopped behind it; what Spark's client raises inside says in one sentence what is wrong.

    pyspark looks ten minutes for a server that is not there. This waits `seconds` for it, and less than a minute when it is lost later.

    Raises
    ------
    PlanError
        The URL is malformed.
    ExtensionError
        pyspark is missing here, or the server answers with an error of its own.
    UnreachableError
        There is no server, it does not let this client in, or it was lost.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.errors.exceptions.connect import SparkConnectGrpcException
        from pyspark.sql.connect.client.retries import DefaultPolicy
        from pyspark.sql.connect.session import SparkSession
    except ImportError as error:
        raise ExtensionError(f"this Python has no working pyspark ({error}): pip install 'sparkgap[client]'") from error
    try:
        session = SparkSession.builder.remote(url).create()
    except (PySparkException, ValueError):  # their text may quote the token
        begin = re.match(r"(\w+:/*)?[^;/?]*", url)
        raise PlanError(
            f"the URL that begins with {begin[0] if begin else ''!r} is none of Spark Connect: write sc://HOST:PORT/;use_ssl=true;token=…"
        ) from None
    client = session.client
    place = client._builder.endpoint
    session.release_session_on_close = False  # there is none on the server yet
    try:
        client.set_retry_policies([])
        _await_connection(client, place, seconds)
        client._analyze(method="spark_version")  # the first call: a wrong token fails here
        session.release_session_on_close = True
        client.set_retry_policies([DefaultPolicy(max_retries=8, max_backoff=4000)])
        yield session
    except SparkConnectGrpcException as error:
        raise _unreachable(error, place) from error
    finally:
        closing = threading.Thread(target=session.stop, name="sparkgap-close", daemon=True)
        closing.start()
        closing.join(3.0)
        client._closed = True  # or pyspark asks a server that does not answer once more, at exit


def _await_connection(client: SparkConnectClient, place: str, seconds: float) -> None:
    """Until there is one or a first attempt has failed; the first call then says why."""
    from grpc import ChannelConnectivity

    settled = threading.Event()

    def changed(state: ChannelConnectivity) -> None:
        if state in (ChannelConnectivity.READY, ChannelConnectivity.TRANSIENT_FAILURE):
            settled.set()

    client._channel.subscribe(changed, try_to_connect=True)
    try:
        if not settled.wait(seconds):
            raise UnreachableError(
                f"{place} does not answer within {seconds:g} s",
                "check host and port, firewalls, and whether the server is one with TLS (use_ssl=true in the URL)",
            )
    finally:
        client._channel.unsubscribe(changed)


def _unreachable(error: Any, place: str) -> ExtensionError:
    """By the status code of gRPC."""
    from grpc import StatusCode

    code = error.getGrpcStatusCode()
    text = str(error)
    if code == StatusCode.UNAVAILABLE:
        why = next((found[1].strip() for each in _DETAILS if (found := each.search(text))), text.partition("\n")[0])
        return UnreachableError(
            f"no server can be reached at {place} ({why})",
            "check host, port and use_ssl of the URL, and whether the server runs",
        )
    if code in (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED):
        return UnreachableError(
            f"the server at {place} does not let this client in", "the token in the URL is missing or wrong"
        )
    if code == StatusCode.UNIMPLEMENTED:
        return UnreachableError(
            f"what listens at {place} is no Spark Connect server of a release that sparkgap knows",
            "check host and port of the URL",
        )
    return ExtensionError(f"the server at {place} answers with an error of its own: {text.splitlines()[0]}")


def server_place(session: SparkSession) -> str:
    """Host and port of its server."""
    return str(session.client._builder.endpoint)


def user_of(session: SparkSession) -> str:
    """Whose runs its server shows; empty where nobody is named."""
    return session.client._user_id or ""


def execute(session: SparkSession, **kind: Message) -> Iterator[run_pb2.Reply]:
    """Send one command and give out its replies as they arrive; a refusal is raised."""
    command = pb.Command(protocol=PROTOCOL, client=client_name(), **kind)  # type: ignore[arg-type]
    client = session.client
    with translated(client):
        request = client._execute_plan_request_with_metadata()
        request.plan.command.extension.Pack(command)
        for response in background.stream(lambda: client._execute_and_fetch_as_iterator(request, {})):
            _established.add(client)
            if isinstance(response, any_pb2.Any):
                yield _reply(response)


def is_interrupt(error: Exception) -> bool:
    """Whether Spark says so that somebody has interrupted the operation, by ``interruptAll`` for example."""
    condition = getattr(error, "getCondition", lambda: None)
    return bool(condition() == "OPERATION_CANCELED")


def require_sendable(plan: Message, what: str) -> None:
    """Refuse what Connect's server would refuse with a gRPC status that names no culprit."""
    if (size := plan.ByteSize()) > _MAX_PLAN_BYTES:
        raise PlanError(
            f"{what} has {size} bytes, a request to a Connect server may have {_MAX_PLAN_BYTES}: write large values to storage "
            "and carry their path"
        )


def client_of(session: SparkSession) -> SparkConnectClient:
    """The session's connection, for those who pass it on to other functions here."""
    return session.client


def put_pickle(client: SparkConnectClient, plan: pb.PredictPlan, data: bytes) -> None:
    """Upload a plan's large pickle, unless the server has it, and say so in the plan; it goes into the plan where the server takes it nowhere else.

    Costs a question, and in a session whose user has not sent this content before, the upload. A server that has lost it is sent it again.

    Raises
    ------
    PlanError
        The server takes no pickle of this size; nothing was sent.
    """
    with _uploading.setdefault(client, threading.Lock()):
        answer = _ask(client, payload=pb.PayloadQuery(digest=plan.digest, bytes=len(data), name=plan.name)).payload
        if answer.way == run_pb2.PayloadAnswer.UPLOAD:
            for _ in background.stream(lambda: _sent(client, plan.digest, data)):
                pass
    if answer.way == run_pb2.PayloadAnswer.INLINE:
        plan.make_predict_fn.data = data
    else:
        plan.make_predict_fn.uploaded_bytes = len(data)


_uploading: weakref.WeakKeyDictionary[SparkConnectClient, threading.Lock] = weakref.WeakKeyDictionary()


def _sent(client: SparkConnectClient, digest: str, data: bytes) -> Iterator[Any]:
    """Spark's `cache_artifact` under a name of ours: by content, as the same content does not always pickle to the same bytes."""
    from pyspark.sql.connect.client.artifact import InMemory, new_cache_artifact

    manager = client._artifact_manager
    try:
        for attempt in client._retrying():
            with attempt:
                artifact = new_cache_artifact(digest, InMemory(data))
                yield from manager._retrieve_responses(manager._add_artifacts([artifact])).artifacts
    except Exception as error:
        client._handle_error(error)


def held(session: SparkSession, digest: str, data: bytes, name: str) -> str:
    """Upload a pickle as a prediction's weights go, and ask again: HELD, or how it has to travel instead (`PayloadAnswer.Way`)."""
    put_pickle(session.client, pb.PredictPlan(digest=digest, name=name), data)
    answer = ask(session, payload=pb.PayloadQuery(digest=digest, bytes=len(data), name=name)).payload
    return run_pb2.PayloadAnswer.Way.Name(answer.way)


def ask(session: SparkSession, **kind: Message) -> run_pb2.Reply:
    """Ask one question that changes nothing; a refusal is raised."""
    return _ask(session.client, **kind)


def require_extension(client: SparkConnectClient) -> None:
    """Make sure, once for each client, that its server has the extension and speaks our messages.

    A query that holds one of our expressions fails inside pyspark's own code, with words that help nobody; so this asks before.
    """
    if client in _greeted:
        return
    spoken = _ask(client, hello=pb.HelloQuery()).hello.protocol
    if spoken != PROTOCOL:
        raise VersionError(
            f"this client ({client_name()}) speaks version {PROTOCOL} of sparkgap's messages, the server speaks version {spoken}: "
            "install the same sparkgap release on both sides"
        )
    _greeted.add(client)


_greeted: weakref.WeakSet[SparkConnectClient] = weakref.WeakSet()
_established: weakref.WeakSet[SparkConnectClient] = weakref.WeakSet()  # those whose session exists on the server


def _ask(client: SparkConnectClient, **kind: Message) -> run_pb2.Reply:
    query = any_pb2.Any()
    query.Pack(pb.Query(protocol=PROTOCOL, client=client_name(), **kind))  # type: ignore[arg-type]

    def ask_once() -> Iterator[Any]:
        if client not in _established:
            client._analyze(method="spark_version")  # GetStatus never creates the session, any other call does
            _established.add(client)
        yield from client._get_operation_statuses(operation_ids=None, request_extensions=[query]).extensions

    with translated(client):
        for extension in background.stream(ask_once):
            return _reply(extension)
    raise _missing()


def _reply(message: any_pb2.Any) -> run_pb2.Reply:
    reply = run_pb2.Reply()
    try:
        understood = message.Unpack(reply)
    except DecodeError:
        understood = False
    if not understood or reply.WhichOneof("kind") is None:
        raise ProtocolError(
            f"the server sent a {message.type_url}, which this release does not understand: install the server's release"
        )
    if reply.WhichOneof("kind") == "refusal":
        raise refusal(reply.refusal)
    return reply


def _missing() -> ExtensionError:
    return ExtensionError(
        "the Spark Connect server does not have the sparkgap extension: its operator adds sparkgap's jar and settings "
        "(deploy/spark-defaults.conf), or starts it with `sparkgap-server start`"
    )


@contextmanager
def translated(client: SparkConnectClient) -> Iterator[None]:
    """Turn the server's word that nobody handles our messages, and Spark's that the session is over, into errors of ours; others of Spark pass."""
    from pyspark.errors.exceptions.connect import SparkConnectGrpcException

    try:
        yield
    except SparkgapError:
        raise
    except Exception as error:
        ended = _ENDED.search(str(error))
        if ended or client.is_closed:
            why = ended[0] if ended else f"{type(error).__name__}: {error}"
            raise SessionEndedError(
                f"this client's Spark session is over ({why}): sessions end when they are stopped, after "
                "spark.connect.session.manager.defaultSessionTimeout without a call, and with their server. Create another one with "
                'SparkSession.builder.remote("sc://HOST:PORT").create()'
            ) from error
        if isinstance(error, SparkConnectGrpcException) and _MISSING.search(str(error)):
            raise _missing() from error
        raise
