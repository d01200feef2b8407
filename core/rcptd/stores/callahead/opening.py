"""All that comes before MAIL: PROXY header, banner, EHLO or LHLO, STARTTLS, AUTH.

Whatever goes wrong here is about us, or about the hop as a whole, and so a `HopTrouble`.

A loop is an SMTP server that calls itself as we call ourselves in its reply to EHLO, which is what RFC 5321 4.1.1.1
has servers say there, and what Postfix compares. LMTP servers only take mail for mailboxes of their own, and stand on
the same host as often as not.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_UNIX

from rcptd.stores.callahead import proxyheader, sasl
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.meaning import Step, Trouble
from rcptd.stores.callahead.nexthop import NextHop
from rcptd.stores.callahead.replies import Reply
from rcptd.stores.callahead.tlscontext import context_for
from rcptd.stores.callahead.wire import Wire

# It does not know EHLO: RFC 5321 4.1.4, RFC 1869 4.5. Other refusals of EHLO are refusals of us.
_NO_EHLO = (500, 502, 504)


@dataclass(frozen=True, slots=True)
class Opened:
    """What the hop said of itself: its extensions, by keyword in capital letters, with their parameters."""

    extensions: Mapping[str, str]
    encrypted: bool


async def open_dialogue(wire: Wire, hop: NextHop, options: Dialogue, until: float) -> Opened:
    """Go through all of it on a wire that is connected; raises `HopTrouble`."""
    if options.proxy != "off":
        _introduce(wire, options)
    banner = await wire.read(Step.BANNER, until)
    if banner.code != 220:
        raise wire.trouble(Trouble.REFUSED, Step.BANNER, banner, banner.code)
    extensions = await _hello(wire, hop, options, until)
    encrypted = options.tls != "off" and await _start_tls(wire, hop, options, extensions, until)
    if encrypted:
        extensions = await _hello(wire, hop, options, until)  # RFC 3207 4.2: what was said in clear is void
    if options.auth_user:
        await _authenticate(wire, options, extensions, until, private=encrypted or _is_local(wire))
    return Opened(extensions, encrypted)


def _introduce(wire: Wire, options: Dialogue) -> None:
    if wire.family != AF_UNIX and not wire.theirs:
        raise wire.trouble(Trouble.BROKEN, Step.PROXY, "it was gone at once")
    header = proxyheader.v1 if options.proxy == "v1" else proxyheader.v2
    wire.transport.write(header(wire.ours, wire.theirs, wire.family))


def _is_local(wire: Wire) -> bool:
    if wire.family == AF_UNIX:
        return True
    return bool(wire.theirs) and ip_address(wire.theirs[0].partition("%")[0]).is_loopback


async def _hello(wire: Wire, hop: NextHop, options: Dialogue, until: float) -> Mapping[str, str]:
    verb = "LHLO" if hop.protocol == "lmtp" else "EHLO"
    reply = await wire.command(Step.HELLO, f"{verb} {options.hello}", until)
    knows_ehlo = True
    if verb == "EHLO" and reply.code in _NO_EHLO:
        knows_ehlo = False
        reply = await wire.command(Step.HELLO, f"HELO {options.hello}", until)
    if reply.code != 250:
        raise wire.trouble(Trouble.REFUSED, Step.HELLO, reply, reply.code)
    if hop.protocol == "smtp" and _same_name(reply.lines[0].partition(" ")[0], options.hello):
        loop = f"it calls itself {options.hello}, as we do; if it is another host, choose another hello"
        raise wire.trouble(Trouble.LOOP, Step.HELLO, loop)
    return _extensions(reply) if knows_ehlo else {}


def _same_name(one: str, other: str) -> bool:
    return one.lower().rstrip(".") == other.lower().rstrip(".")


def _extensions(reply: Reply) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for line in reply.lines[1:]:
        # "AUTH=LOGIN" is from before RFC 2554; those who still say it mostly say "AUTH LOGIN", too.
        keyword, _, parameters = line.upper().replace("AUTH=", "AUTH ", 1).partition(" ")
        found[keyword] = f"{found.get(keyword, '')} {parameters}".strip()
    return found


async def _start_tls(
    wire: Wire, hop: NextHop, options: Dialogue, extensions: Mapping[str, str], until: float
) -> bool:
    required = options.tls == "required"
    name = options.tls_name or hop.host
    if required and not name:
        raise wire.trouble(Trouble.TLS, Step.TLS, "no name to verify its certificate by; set tls_name")
    if "STARTTLS" not in extensions:
        if required:
            raise wire.trouble(Trouble.TLS, Step.TLS, "not offered")
        return False
    reply = await wire.command(Step.TLS, "STARTTLS", until)
    if reply.code != 220:
        raise wire.trouble(Trouble.TLS, Step.TLS, reply, reply.code)
    if not wire.silent:
        # Whatever comes here came in clear, and would be read as if it had been encrypted.
        raise wire.trouble(Trouble.TLS, Step.TLS, "something follows the reply to STARTTLS")
    try:
        async with asyncio.timeout_at(wire.limit(until)):
            await wire.start_tls(context_for(options), name)
    except TimeoutError:
        raise wire.trouble(Trouble.TIMEOUT, Step.TLS, "handshake not done in time") from None
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; a name that idna cannot encode a ValueError
        raise wire.trouble(Trouble.TLS, Step.TLS, str(error) or type(error).__name__) from None
    return True


async def _authenticate(
    wire: Wire, options: Dialogue, extensions: Mapping[str, str], until: float, *, private: bool
) -> None:
    offered = extensions.get("AUTH", "").split()
    mechanism = sasl.choose(offered, private=private, in_clear=options.auth_in_clear)
    if not mechanism:
        line = "" if private else " in clear"
        what = f"offers no AUTH that we could use{line}: {' '.join(offered) or 'none at all'}"
        raise wire.trouble(Trouble.AUTH, Step.AUTH, what)
    exchange = sasl.exchange(mechanism, options.auth_user, options.auth_password)
    reply = await wire.command(Step.AUTH, f"AUTH {next(exchange)}", until)
    while reply.code == 334:
        try:
            line = exchange.send(reply.text)
        except StopIteration:
            raise wire.trouble(Trouble.AUTH, Step.AUTH, f"{mechanism}: asks for more than there is") from None
        except ValueError as error:
            raise wire.trouble(Trouble.AUTH, Step.AUTH, f"{mechanism}: {error}") from None
        reply = await wire.command(Step.AUTH, line, until)
    if reply.code != 235:
        raise wire.trouble(Trouble.AUTH, Step.AUTH, f"{mechanism}: {reply}", reply.code)
