"""Where the tables of Cyrus' backend sql are, by the options of imapd.conf."""

from rcptd.stores.cyrus.databases import SqlServer
from rcptd.stores.cyrus.imapdconf import ImapdConf


def server(conf: ImapdConf) -> SqlServer | None:
    """Give the server that imapd.conf names, the first of its hosts; None where it names no database."""
    if not conf.sql_database:
        return None
    hosts = conf.sql_hostnames.replace(",", " ").split()
    return SqlServer(
        conf.sql_engine or "mysql",  # as Cyrus has it where it is built with several
        conf.sql_database,
        hosts[0] if hosts else "",
        conf.sql_user or "",
        conf.sql_passwd or "",
    )
