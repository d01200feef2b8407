"""Makes, of a world that a case file describes, what the engine runs on; in memory, without a daemon."""

import tomllib
from typing import Any

from rcptd import schema
from rcptd.config import Daemon
from rcptd.policy import Policy, read_rules
from rcptd.question import Unavailable
from rcptd.stores.memory import Memory
from rcptd.world import World as Running
from tests.harness.world import World


def running(world: World) -> Running:
    """Open the world's stores in memory and make its policy ready; raises `ValueError` with its faults."""
    faults: list[str] = []

    def report(key: str, what: str) -> None:
        faults.append(f"{key}: {what}")

    daemon = schema.read(Daemon, tomllib.loads(world.daemon), report)
    assert daemon, faults
    rules = read_rules(
        tomllib.loads(world.rules).get("rules", []),
        world.stores,
        report,
        reached_from_map=True,
        defaults={"posting_unknown": daemon.posting_unknown},
    )
    if faults:
        raise ValueError("; ".join(faults))
    stores: dict[str, Any] = {}
    for name, recipients in world.stores.items():
        store = stores[name] = Memory(recipients if isinstance(recipients, dict) else {})
        if not isinstance(recipients, dict):
            store.trouble = Unavailable("down in this world")
    policy = Policy(rules, default_domain=daemon.default_domain or "", postmaster=daemon.postmaster)
    return Running(policy, stores, daemon.deadline, daemon.reference_in_reply)
