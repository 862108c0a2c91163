"""Starts a Ray cluster of N nodes on this machine; prints its address and raylets; ends when its input ends."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from ray.cluster_utils import Cluster

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


def reap(raylets: list[Any]) -> None:
    """A killed raylet must not stay as a zombie: to its workers it would look alive."""
    while True:
        for raylet in raylets:
            raylet.poll()
        time.sleep(0.5)


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args=SMALL)
    others = [cluster.add_node(**SMALL) for _ in range(int(sys.argv[1]) - 1)]
    raylets = [node.all_processes["raylet"][0].process for node in others]
    print(json.dumps({"address": cluster.address, "raylets": [raylet.pid for raylet in raylets]}), flush=True)
    threading.Thread(target=reap, args=(raylets,), daemon=True).start()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
