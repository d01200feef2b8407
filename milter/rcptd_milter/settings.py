"""What an operator can say in `[milter]`; importable where pymilter is not installed."""

from dataclasses import dataclass

from rcptd import schema


def _listen(value: object) -> schema.Address:
    where = schema.address(value)
    if where.kind == "fd":
        # smfi_setconn takes a path or a port and opens the socket itself.
        raise ValueError("libmilter takes no inherited descriptor; write unix:, inet: or inet6:")
    return where


def _recipient(value: object) -> str:
    return schema.choice("typed", "routed")(value)


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `[milter]`; times in seconds."""

    listen: schema.Address = schema.option(
        _listen, doc='Where the MTA finds the filter: "unix:/run/rcptd/milter.sock" or "inet:127.0.0.1:7851".'
    )
    mode: int = schema.option(
        schema.octal_mode, default="0660", doc="File mode of a unix socket; the MTA needs to write to it."
    )
    owner: int | None = schema.option(
        schema.user, default=None, doc="User who owns a unix socket; not set: the one who runs rcptd."
    )
    group: int | None = schema.option(
        schema.group, default=None, doc="Group of a unix socket, as in the MTA's own; not set: that of rcptd."
    )
    recipient: str = schema.option(
        _recipient,
        default="typed",
        doc='Judge the recipient as the client typed it ("typed"), or as the MTA is about to route it '
        '("routed": the macro {rcpt_addr}, with Sendmail after virtusertable).',
    )
    timeout: float = schema.option(
        schema.duration(60, 86400),
        default="7210s",  # libmilter's own (MI_TIMEOUT); an MTA's session may idle for an hour
        doc="How long a silent MTA keeps its connection.",
    )
    backlog: int = schema.option(
        schema.number(1, 65535),
        default=1024,
        doc="How many connections may wait to be taken up; the kernel bounds it by net.core.somaxconn.",
    )
