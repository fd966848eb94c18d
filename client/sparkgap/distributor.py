"""`TorchDistributor`: packs what the user wants trained into a plan, for `run` to follow."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkgap_protos import codec
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap import channel
from sparkgap.entrance import entrance
from sparkgap.errors import PlanError
from sparkgap.folders import name_of
from sparkgap.modules import Chosen, Modules, Needs, checked, with_function
from sparkgap.progress import Console
from sparkgap.run import Run
from sparkgap.scripts import script
from sparkgap.submission import Submission

if TYPE_CHECKING:
    from pyspark.sql.connect.session import SparkSession

_MOST_FAILURES = 1_000_000
_MOST_RESOURCES = 1 << 20


@entrance
class TorchDistributor:
    """Runs PyTorch training on the cluster of a Spark Connect session; a drop-in for `pyspark.ml.torch.distributor.TorchDistributor`.

    Creating one costs nothing and contacts nobody. Each rank finds the environment that torchrun sets (`RANK`, `LOCAL_RANK`, `WORLD_SIZE`,
    `LOCAL_WORLD_SIZE`, `NODE_RANK`, `GROUP_RANK`, `MASTER_ADDR`, `MASTER_PORT`), so `torch.distributed.init_process_group()` needs no arguments.

    Parameters
    ----------
    num_processes
        World size, at least 1.
    local_mode
        True: all ranks in one task, so on one node of the cluster, never at the client. False: one barrier task for each GPU share or CPU rank.
    use_gpu
        True: one GPU a rank, as Spark assigns them to the task. False: the ranks see no GPU. More ranks in local mode than one task can have GPUs are
        refused (`ResourceError`) with the number that would do. pyspark lowers `num_processes` there with a warning; a run of another
        world size has another batch size than the one asked for, and a program that counts on its number of devices waits for ever.
    spark
        Spark Connect session; the active one by default.
    name
        For people; the name of the function or script by default.
    max_failures
        How often the gang may fail and is started again as a whole, after 1 s at first and then twice as long each time, 30 s at most. The function
        runs from its beginning: it finds `sparkgap.training.attempt()` and its own checkpoints. A cancelled run is never started again.
    wait
        True: a run whose slots are taken waits in the queue; `Run.waiting_for` tells for what. False: it is refused at once (`ResourceError`).
    resources
        What one rank gets, ``{"cpus": 4, "gpus": 1}`` or one of them, whole numbers; the cluster's setting for tasks by default. Spark cuts tasks
        otherwise than ``spark.task.*`` says on standalone clusters, YARN and Kubernetes, not with a local master.
    results
        ``"rank0"``: a run's value is what rank 0 returned. ``"all"``: a list of what each rank returned, in the order of the ranks.
    run_id
        1 to 128 letters, digits, '.', '_' and '-'. Submitting the same plan under the same id again gives the same run. Random by default.
    modules
        Modules, or their names, whose sources travel with the function or script: a package whole, others as they are, without what they import.
        By default those of the user's own project that it needs: found from what it refers to and, without running them, from the import
        statements in them, as far as they are files of Python source outside site-packages. They go before what the workers have
        installed. A module that is imported by a computed name has to be given. [] sends none.
        With the modules of a package travel the data files beside them, ``Path(__file__).parent / "conf.json"`` for example: all in the same folders
        and in folders below that hold no Python, but for hidden ones, notebooks and links; none where a package has more than 200 of them or 4 MiB.
        What lies beside a module of no package, or beside a script, has to be given as a path.
        A `pathlib.Path` is a file or folder that travels as it is, under its own name, beside a script and first on ``sys.path``; a function finds it
        in `sparkgap.files`. Paths alone leave the search for modules on. Of a folder all regular files travel, without their permissions, but
        for ``*.pyc``, what is in ``__pycache__``, in folders whose name begins with a dot, and in virtual environments; a link has to stay
        inside. All together at most 16 MiB and 2000 files.

    Attributes
    ----------
    num_processes, local_mode, use_gpu
        As given. What they are when `run` or `submit` is called counts.
    input_params : dict
        These three by name, as they are now; a copy.
    spark : SparkSession
        The session that runs are submitted through.
    is_remote : bool
        True: the session is always one of Spark Connect.
    ssl_conf : str
        The setting of a session that lets ranks talk in the clear on a cluster with ``spark.ssl.enabled``.
    logger : logging.Logger
        Named as pyspark's. Nothing is written to it: output arrives in `run`, and what pyspark warns of there is refused with a sentence.

    Raises
    ------
    PlanError
        An argument can never work (also a ValueError).

    Notes
    -----
    pyspark's `num_tasks` and `is_spark_local_master` are absent: the server knows them, and decides on tasks when the run arrives; creating a
    distributor contacts nobody. pyspark's private methods are absent, too.
    """

    ssl_conf = "pytorch.spark.distributor.ignoreSsl"
    is_remote = True

    def __init__(
        self,
        num_processes: int = 1,
        local_mode: bool = True,
        use_gpu: bool = True,
        *,
        spark: SparkSession | None = None,
        name: str | None = None,
        run_id: str | None = None,
        max_failures: int = 0,
        results: str = "rank0",
        resources: Mapping[str, int] | None = None,
        wait: bool = True,
        modules: Modules | None = None,
    ) -> None:
        if isinstance(num_processes, bool) or not isinstance(num_processes, int) or num_processes < 1:
            raise PlanError(f"num_processes has to be a positive integer, got {num_processes!r}")
        if results not in ("rank0", "all"):
            raise PlanError(f"results has to be 'rank0' or 'all', got {results!r}")
        if (
            isinstance(max_failures, bool)
            or not isinstance(max_failures, int)
            or not 0 <= max_failures <= _MOST_FAILURES
        ):
            raise PlanError(f"max_failures has to be an integer from 0 to {_MOST_FAILURES}, got {max_failures!r}")
        self.num_processes = num_processes
        self.local_mode = bool(local_mode)
        self.use_gpu = bool(use_gpu)
        self.logger = logging.getLogger(type(self).__name__)
        self._spark = spark
        self._name = name
        self._run_id = run_id
        self._modules = checked(modules)
        self._max_failures = max_failures
        self._results = results
        self._resources = _per_rank(resources, self.use_gpu)
        self._wait = bool(wait)

    def __repr__(self) -> str:
        return f"TorchDistributor(num_processes={self.num_processes}, local_mode={self.local_mode}, use_gpu={self.use_gpu})"

    @property
    def input_params(self) -> dict[str, Any]:
        """What was asked for, by the names of pyspark's arguments."""
        return {"num_processes": self.num_processes, "local_mode": self.local_mode, "use_gpu": self.use_gpu}

    @property
    def spark(self) -> SparkSession:
        """The session given, or the active one.

        Raises
        ------
        PlanError
            There is none.
        ExtensionError
            It is a classic one.
        """
        return channel.connect_session(self._spark)

    def run(self, train_object: Callable[..., Any] | str | Path, *args: Any, **kwargs: Any) -> Any:
        """Train, show the ranks' output and progress while waiting, and return what rank 0 returned, or what all ranks did.

        Blocks until the run ends. Ctrl-C cancels the run on the cluster, at whatever moment; KeyboardInterrupt has a text where the server could not
        be told within 10 s. Losing the client cancels nothing.

        Each rank starts in an empty working directory of its own, which is removed after its end: relative paths of two ranks do not meet, and what
        has to stay is written to storage outside, by an absolute path or a URL. Files that a rank leaves there are named with their sizes in its
        output and in `Run.notice`. ``sys.argv`` of a function has a name and no options. Random numbers that nobody has seeded differ between ranks
        and between runs.

        Parameters
        ----------
        train_object
            A function, called as ``train_object(*args, **kwargs)`` in every rank, or the path of a script on this machine, which is sent
            with the modules beside it that it imports and run as ``__main__`` with `args` as its ``sys.argv[1:]``. A folder with a
            ``__main__.py`` is sent whole, as folders in `modules` are, with the modules outside it that its files import, and run as
            ``python FOLDER`` would run it. A script has succeeded when it ends with exit status 0, by ``sys.exit()`` or ``os._exit(0)`` too, after
            its threads and exit handlers; one that fails does not wait for its threads. A function has succeeded when it has returned and the threads
            and `multiprocessing` children that it started, daemons aside, have ended; after 10 min (``spark.sparkgap.threads.timeout`` of the server)
            its value counts all the same, and `Run.notice` names those that still ran.
        *args, **kwargs
            For the function; a script takes positional arguments only.

        Returns
        -------
        object
            Rank 0's return value, None for a script; with ``results="all"`` a list of the ranks' values.

        Raises
        ------
        PlanError
            Function or arguments cannot be pickled, or hold what works in this process alone (a session, a DataFrame), with the culprit's name, or
            the plan can never work. Nothing was started.
        ExtensionError
            The server lacks the extension, versions do not fit (`VersionError`) or the cluster cannot hold the ranks (`ResourceError`). Another minor
            version of Python runs scripts and functions of modules, and opens values without functions and classes of its own in them.
        TrainingError
            A rank failed; its own exception is the cause.
        RunCancelledError
            Somebody cancelled the run.
        RunLostError
            The server ended while a run with this id was alive.
        ResultError
            The run has succeeded, and its value cannot be opened here, a DDP model for example; the error's ``run`` has logs and metrics.
        SessionEndedError
            The session is over, the run is not; the text says how to take it up again.
        """
        submission = self._submission(train_object, args, kwargs)
        with Console() as console:
            run = submission.followed(console)
        return run.result()

    def submit(self, train_object: Callable[..., Any] | str | Path, *args: Any, **kwargs: Any) -> Run:
        """Start the run and return at once; takes and raises what `run` does, except for what happens after the start.

        Ctrl-C before it has returned takes the run back, unless it was there before this call.

        Returns
        -------
        Run
            Owned by the server: it goes on when this process ends.
        """
        return self._submission(train_object, args, kwargs).sent()

    def _submission(
        self, train_object: Callable[..., Any] | str | Path, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Submission:
        session = channel.connect_session(self._spark)
        plan = pb.TrainPlan(
            run_id=self._run_id or uuid.uuid4().hex,
            num_processes=self.num_processes,
            local_mode=self.local_mode,
            use_gpu=self.use_gpu,
            all_results=self._results == "all",
            max_failures=self._max_failures,
            refuse_to_wait=not self._wait,
            resources=self._resources,
        )
        if isinstance(train_object, (str, os.PathLike)):
            path = Path(train_object)
            plan.name = self._name or name_of(path)
            plan.script.CopyFrom(script(path, args, kwargs, self._modules))
        elif callable(train_object):
            plan.name = self._name or str(getattr(train_object, "__qualname__", type(train_object).__qualname__))
            plan.function.CopyFrom(_function(train_object, plan.name, args, kwargs, self._modules))
        else:
            raise PlanError(
                f"train_object has to be a function or the path of a script or folder, got a {type(train_object).__qualname__}"
            )
        return Submission(session, plan)


def _per_rank(resources: Mapping[str, int] | None, use_gpu: bool) -> pb.RankResources | None:
    if resources is None:
        return None
    if not isinstance(resources, Mapping):
        raise PlanError(f'resources has to be a mapping like {{"cpus": 4, "gpus": 1}}, got {resources!r}')
    if unknown := sorted(map(str, set(resources) - {"cpus", "gpus"})):
        raise PlanError(f"resources has {', '.join(unknown)}: only 'cpus' and 'gpus' of one rank can be asked for")
    for name, amount in resources.items():
        if isinstance(amount, bool) or not isinstance(amount, int) or not 1 <= amount <= _MOST_RESOURCES:
            raise PlanError(f"resources[{name!r}] has to be a whole number of at least 1 for each rank, got {amount!r}")
    if "gpus" in resources and not use_gpu:
        raise PlanError("resources asks for gpus, and use_gpu is False: leave one of them out")
    return pb.RankResources(**resources)


def _function(
    function: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    chosen: Chosen,
) -> pb.Payload:
    parts: dict[str, object] = {f"the function {name}": function}
    parts |= {f"argument {index}": value for index, value in enumerate(args)}
    parts |= {f"argument {key!r}": value for key, value in kwargs.items()}
    needs = Needs()
    try:
        payload = codec.pack((function, args, kwargs), f"the function {name}", parts, needs)
    except codec.NotPicklable as error:
        raise PlanError(str(error)) from error.__cause__
    luggage = with_function(chosen, needs, f"the function {name}")
    payload.modules.extend(luggage.modules)
    payload.files.extend(luggage.files)
    return payload
