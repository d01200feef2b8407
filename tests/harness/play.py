"""Plays a case to an MTA, whichever it is, and tells what came back for each recipient.

    for heard in play(case, port):
        assert expected_of(case, heard.rcpt, world, "milter", "postfix").meets(*heard.reply)

Blocking, one SMTP session; from asyncio call it by `asyncio.to_thread`.
"""

import base64
from dataclasses import dataclass

from tests.harness.case import Case, Rcpt
from tests.rig.dialogue import Dialogue, Reply

PASSWORD = "secret"  # of every user that a case names


@dataclass(frozen=True, slots=True)
class Heard:
    """What the client was told about one recipient."""

    rcpt: Rcpt
    answer: Reply

    @property
    def reply(self) -> tuple[int, str]:
        """Reply code and enhanced status code."""
        return self.answer.code, self.answer.enhanced

    def __str__(self) -> str:
        return f"line {self.rcpt.line}: {self.rcpt.path} wants {self.rcpt.wanted} and got {self.answer}"


def play(case: Case, port: int, *, host: str = "127.0.0.1") -> list[Heard]:
    """Hold the dialogue of a case; a MAIL that is refused stands for each of its recipients."""
    heard = []
    with Dialogue(port, host=host, source=case.client) as session:
        if case.auth:
            token = base64.b64encode(f"\0{case.auth}\0{PASSWORD}".encode()).decode()
            reply = session.command(f"AUTH PLAIN {token}")
            assert reply.code == 235, f"AUTH: {reply}"
        for number, transaction in enumerate(case.transactions):
            if number:
                session.rset()
            command = " ".join(["MAIL FROM:" + transaction.sender, *transaction.parameters])
            mail = session.command(command.encode())
            for one in transaction.recipients:
                raw = b"RCPT TO:" + one.path.encode("utf-8", "surrogateescape")
                heard.append(Heard(one, session.command(raw) if mail.code == 250 else mail))
    return heard
