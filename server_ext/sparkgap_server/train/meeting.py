"""Where the ranks of a run meet: a store in rank 0's process that listens from before the address is told, so no other process can take the port."""

from __future__ import annotations

import socket
from typing import Any

from sparkgap_protos.v1 import node_pb2 as pb

_kept: list[Any] = []


def listen(placement: pb.RankPlacement) -> Any:
    """Start rank 0's store on a free port of this node's address; it lives as long as the process.

    Returns
    -------
    torch.distributed.TCPStore
        Its `port` is what the other ranks need.

    Raises
    ------
    ModuleNotFoundError
        Where torch is not installed.
    """
    import torch.distributed as dist

    family = socket.getaddrinfo(placement.host, None, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((placement.host, 0))
    listener.listen(min(4096, 16 + 4 * placement.world_size))
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        placement.host,
        port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener.detach(),
    )
    _kept.append(store)
    return store
