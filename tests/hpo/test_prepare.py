"""What is set before Ray is imported, each case in a process that has not imported it."""

import json
import os
import subprocess
import sys

import pytest

SAID = """
import json, os
{before}
from hpo.cluster import prepare
prepare({address!r})
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED")
print(json.dumps({{name: os.environ.get(name) for name in names}}))
"""


def after(address: str | None, before: str = "", **env: str) -> dict[str, str | None]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    script = SAID.format(before=before, address=address)
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean | env, capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_ray_of_our_own_asks_for_a_token_of_its_own() -> None:
    one, two = after(None), after(None)
    assert one["RAY_AUTH_MODE"] == two["RAY_AUTH_MODE"] == "token"
    assert None is not one["RAY_AUTH_TOKEN"] != two["RAY_AUTH_TOKEN"] is not None


def test_a_token_of_the_users_stays() -> None:
    assert after(None, RAY_AUTH_TOKEN="theirs")["RAY_AUTH_TOKEN"] == "theirs"


@pytest.mark.parametrize(
    ("address", "before"),
    [("10.0.0.1:6379", ""), (None, "import sys, types; sys.modules['ray'] = types.ModuleType('ray')")],
)
def test_a_cluster_and_a_program_with_ray_of_its_own_keep_their_ways(address: str | None, before: str) -> None:
    found = after(address, before)
    assert found["RAY_AUTH_MODE"] is found["RAY_AUTH_TOKEN"] is None
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
