# What rcptd uses of pymilter 1.0.5: the names of the extension module, as the package Milter passes them on.
from collections.abc import Callable

class error(Exception): ...  # noqa: N801 - pymilter's name

# SMFIS_*: what a callback returns
CONTINUE: int
REJECT: int
ACCEPT: int
TEMPFAIL: int
NOREPLY: int
ALL_OPTS: int
# SMFIF_*
SETSYMLIST: int
# SMFIM_*
M_CONNECT: int
M_ENVFROM: int
M_ENVRCPT: int
# SMFIP_*
P_NOHELO: int
P_NODATA: int
P_NOUNKNOWN: int
P_NOEOH: int
P_NOBODY: int
P_NOHDRS: int
P_NR_CONN: int
P_NR_MAIL: int

def set_connect_callback(callback: Callable[..., int] | None, /) -> object: ...
def set_envfrom_callback(callback: Callable[..., int] | None, /) -> object: ...
def set_envrcpt_callback(callback: Callable[..., int] | None, /) -> object: ...
def set_eom_callback(callback: Callable[..., int] | None, /) -> object: ...
def set_abort_callback(callback: Callable[..., int] | None, /) -> object: ...
def set_close_callback(callback: Callable[..., int] | None, /) -> object: ...
def register(
    name: str,
    unknown: Callable[..., int] | None = ...,
    data: Callable[..., int] | None = ...,
    negotiate: Callable[..., int] | None = ...,
) -> None: ...
def setconn(name: str, /) -> None: ...
def settimeout(seconds: int, /) -> None: ...
def setbacklog(connections: int, /) -> None: ...
def opensocket(rmsock: bool, /) -> None: ...
def main() -> None: ...
def stop() -> None: ...
