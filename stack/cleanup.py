"""Stops whatever a supervisor that was killed left running in a data folder."""

import asyncio
import signal

from stack import leftovers
from stack.data_folder import DataFolder
from stack.postgres_server import PostgresServer
from stack.valkey_cluster import ValkeyCluster
from stack.valkey_server import ValkeyServer


async def stop_services(folder: DataFolder) -> int:
    """Stop services that were left. Returns how many there were; StackError if one stays."""
    run = folder.read_run()
    left = [one for one in (run.processes if run else []) if leftovers.is_marked(one.pid, folder.path)]
    await asyncio.gather(*(leftovers.stop(one.pid, one.name, signal.SIGTERM, signal.SIGKILL) for one in left))
    return len(left)


async def stop_leftovers(folder: DataFolder) -> int:
    """Stop services and embedded stores that were left. Returns how many there were."""
    services = await stop_services(folder)
    postgres = await PostgresServer(folder.path, password="", port=1).stop_leftover()
    valkey = await ValkeyServer(folder.path, password="", port=1).stop_leftover()
    cluster = await ValkeyCluster(folder.path, password="").stop_leftover()
    return services + postgres + valkey + cluster
