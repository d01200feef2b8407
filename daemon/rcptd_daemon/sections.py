"""The sections of the configuration file that belong to the front ends and to the daemon itself."""

from dataclasses import dataclass

import rcptd_milter.settings
import rcptd_socketmap.settings
from rcptd import schema
from rcptd.schema import Address, option
from rcptd_daemon import logs


def _unix(value: object) -> Address:
    where = schema.address(value)
    if where.kind != "unix":
        raise ValueError('the control socket is a unix socket only, as in "unix:/run/rcptd/control.sock"')
    return where


@dataclass(frozen=True, slots=True)
class Control:
    """The options of `[control]`."""

    listen: Address = option(_unix, doc="Where `rcptd check --live` finds the daemon; a unix socket, mode 0660.")
    owner: int | None = option(schema.user, default=None, doc="User who owns the socket.")
    group: int | None = option(schema.group, default=None, doc="Group that may use the socket.")


SECTIONS: dict[str, type] = {
    "socketmap": rcptd_socketmap.settings.Settings,
    "milter": rcptd_milter.settings.Settings,
    "control": Control,
    "log": logs.Settings,
}
