"""The environment of a rank: the variables that torchrun sets, so that code written for torchrun runs unchanged."""

from __future__ import annotations

import ipaddress
import os
import socket

from sparkgap_protos.v1 import node_pb2 as pb


def apply(placement: pb.RankPlacement) -> None:
    """Set what is known before the ranks have met."""
    values = {
        "RANK": placement.rank,
        "LOCAL_RANK": placement.local_rank,
        "WORLD_SIZE": placement.world_size,
        "LOCAL_WORLD_SIZE": placement.local_world_size,
        "NODE_RANK": placement.node_rank,
        "GROUP_RANK": placement.node_rank,
        "GROUP_WORLD_SIZE": placement.num_nodes,
        "ROLE_RANK": placement.rank,
        "ROLE_WORLD_SIZE": placement.world_size,
        "ROLE_NAME": "default",
        "TORCHELASTIC_RUN_ID": placement.run_id,
        "TORCHELASTIC_RESTART_COUNT": placement.attempt,
        "TORCHELASTIC_MAX_RESTARTS": placement.max_failures,
        # Rank 0's store listens before user code runs (meeting.py), and init_process_group must join it instead of binding the port again.
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "CUDA_VISIBLE_DEVICES": ",".join(placement.gpus),
        "SPARKGAP_RUN_ID": placement.run_id,
        # Spark gives each executor's processes this variable for tasks of spark.task.cpus; a rank may have more cores.
        "OMP_NUM_THREADS": max(1, placement.cpus),
    }
    os.environ.update({name: str(value) for name, value in values.items()})
    if not placement.gpus:
        # Accelerate, and with it transformers, otherwise takes a rank that sees no GPU for a run of its own: its world size would be 1.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    _limit_threads(max(1, placement.cpus))


def meet(point: pb.MeetingPoint) -> None:
    """Set where the ranks meet. Between loopback addresses, gloo listens on the loopback interface only."""
    os.environ["MASTER_ADDR"] = point.host
    os.environ["MASTER_PORT"] = str(point.port)
    if is_loopback(point.host):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("TP_SOCKET_IFNAME", "lo")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:
        return False


def _limit_threads(count: int) -> None:
    """By torch's own call: its libraries are loaded already and no longer read the environment."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(count)
