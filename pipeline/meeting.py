"""Where workers meet: at the addresses by which Ray knows their nodes."""

from __future__ import annotations

import os
from typing import Any

import ray.util

import psutil  # isort: skip  (after ray, which brings it)
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"


class Meeting(TorchConfig):
    """Ray's own set-up of a process group, once every worker has told gloo its interface.

    Gloo alone takes the address that the host's name resolves to, which on Debian is 127.0.1.1 and
    on a machine of several networks may be one that the other nodes cannot reach.
    """

    @property
    def backend_cls(self):
        """The set-up, as Ray Train's controller makes it."""
        return _Backend


class _Backend(TorchConfig().backend_cls):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_rays_interface)
        super().on_start(worker_group, backend_config)


def use_rays_interface() -> None:
    """Names to gloo the interface of this node's address in Ray, where the user named none."""
    if INTERFACE in os.environ:
        return
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ[INTERFACE] = name
