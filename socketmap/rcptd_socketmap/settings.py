"""What the section [socketmap] of the configuration takes."""

from dataclasses import dataclass, replace

from rcptd import schema
from rcptd.schema import Address, option
from rcptd_socketmap.maps import EVERY_OTHER, Maps, Shape, maps


@dataclass(frozen=True, slots=True)
class Settings:
    """The socketmap front end: where it listens, what its maps say, and its limits."""

    listen: tuple[Address, ...] = option(
        schema.many(schema.address),
        doc='Where to listen: "unix:/path", "inet:127.0.0.1:7850", "inet6:[::1]:7850", "fd:name"; or a list.',
    )
    maps: Maps = option(
        maps,
        default={EVERY_OTHER: Shape.KEY.value},
        doc='The shape of the replies by map name: key, smmapd, access or error; "*" is every other name.',
    )
    mode: int = option(schema.octal_mode, default="0660", doc="The mode of unix sockets.")
    owner: int | None = option(schema.user, default=None, doc="The owner of unix sockets; ours if not set.")
    group: int | None = option(
        schema.group, default=None, doc="The group of unix sockets, often postfix or smmsp; ours if not set."
    )
    max_connections: int = option(
        schema.number(1, 100_000), default=4000, doc="How many connections may be open; more are closed at once."
    )
    # A Sendmail session keeps its connection, and may be silent for an hour (Timeout.command); each that is
    # cut costs one recipient a 451 (measured). Postfix closes its own after 10 s.
    idle: float = option(
        schema.duration(1, 7 * 86400), default="2h", doc="How long a connection may be silent between requests."
    )
    stall: float = option(
        schema.duration(0.1, 3600),
        default="60s",
        doc="How long a client may take to send one request, or to take its replies.",
    )

    def listening_as(self, other: "Settings") -> "Settings":
        """The same settings on the sockets of others, which only a restart changes."""
        return replace(self, listen=other.listen, mode=other.mode, owner=other.owner, group=other.group)
