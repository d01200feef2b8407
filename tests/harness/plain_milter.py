"""A program for tests: a milter on the real libmilter that knows nothing of rcptd.

    python -m tests.harness.plain_milter SOCKET FILE

It asks for no header and no body, refuses <nobody@...>, defers <later@...>, and writes what it was told
into FILE, one JSON list to a line. It is ended by SIGKILL: libmilter takes seconds to end by itself.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

Milter: Any = importlib.import_module("Milter")  # the stubs know only what rcptd_milter uses


class Plain(Milter.Base):  # type: ignore[misc]
    """One session."""

    told = Path(sys.argv[2])

    def negotiate(self, options: list[int]) -> Any:
        # Milter.Base.setsymlist of pymilter 1.0.5 is broken; the context's own works.
        if options[1] & Milter.SETSYMLIST:
            self._ctx.setsymlist(Milter.M_ENVRCPT, "{client_addr} {rcpt_addr}")
        return super().negotiate(options)

    def connect(self, name: str, _family: int, address: Any) -> int:
        return self._write("connect", name, address)

    def hello(self, name: str) -> int:
        return self._write("helo", name)

    def envfrom(self, path: str, *parameters: str) -> int:
        return self._write("mail", path, *parameters)

    def envrcpt(self, path: str, *_parameters: str) -> int:
        names = ("{rcpt_addr}", "{rcpt_mailer}", "{client_addr}", "{auth_authen}", "i")
        self._write("rcpt", path, {name: self.getsymval(name) for name in names})
        if path.startswith("<nobody"):
            self.setreply("550", "5.1.1", "No such mailbox")
            return int(Milter.REJECT)
        return int(Milter.TEMPFAIL if path.startswith("<later") else Milter.CONTINUE)

    def _write(self, *facts: object) -> int:
        with self.told.open("a", encoding="ascii") as file:
            file.write(json.dumps(facts) + "\n")
        return int(Milter.CONTINUE)


if __name__ == "__main__":
    Milter.factory = Plain
    Milter.set_flags(0)
    Milter.runmilter("plain", sys.argv[1], 60)
