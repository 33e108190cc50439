"""On a spot VM of EC2: tells Ray that this node must go, when EC2 says so.

Ray does not read the notice by itself. A run leaves a node that is drained, with a checkpoint.
Started by cluster.yaml on every spot worker; ends after the notice.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
LOOK_SEC = 2.0
SPARE_SEC = 10.0  # of the notice: what ending the processes takes


def notice(metadata: str = METADATA) -> float | None:
    """Seconds that are left, once EC2 takes the machine back; None before."""

    def ask(path: str, method: str = "GET", **headers: str) -> str:
        asked = urllib.request.Request(f"{metadata}/latest/{path}", method=method, headers=headers)
        with urllib.request.urlopen(asked, timeout=2) as answer:
            return answer.read().decode()

    try:
        token = ask("api/token", "PUT", **{"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        said = json.loads(
            ask("meta-data/spot/instance-action", **{"X-aws-ec2-metadata-token": token})
        )
    except (urllib.error.URLError, TimeoutError, ValueError):  # 404: none yet
        return None
    until = datetime.fromisoformat(said["time"].replace("Z", "+00:00"))
    return (until - datetime.now(UTC)).total_seconds()


def main() -> None:
    """Waits for the notice and passes it on; tries again where Ray does not take it."""
    while True:
        left = notice()
        if left is not None:
            told = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
            told += ["--reason-message", "EC2 takes this spot machine back"]
            told += ["--deadline-remaining-seconds", str(max(1, round(left - SPARE_SEC)))]
            if subprocess.run(told).returncode == 0:
                return
        time.sleep(LOOK_SEC)


if __name__ == "__main__":
    main()
