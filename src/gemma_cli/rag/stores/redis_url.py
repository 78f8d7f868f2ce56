"""What the URL of a Redis store says. No I/O but a look whether the certificate files are there.

    redis://[user:password@]host[:port][/db]                   one server; port 6379, db 0
    unix:///path/to.sock[?db=0]                                one server by its socket; unix://user:password@/path
    redis+cluster://[user:password@]host:port[,host:port...]   a cluster: some of its nodes, the others are found
    redis+sentinel://[user:password@]host:port[,...]/service[/db][?sentinel_username=&sentinel_password=]
                                                               the master that Sentinels know by this name; port 26379

`rediss`, `rediss+cluster` and `rediss+sentinel` are the same over TLS: `?ssl_ca_certs=` is a file with the authorities
of a private certificate, `ssl_certfile=` and `ssl_keyfile=` are a certificate of the client's own. Certificate and host
name are always checked; `ssl_cert_reqs=none` alone is refused, because such lines are copied without a thought:
`ssl_cert_reqs=none&insecure=true` switches the check off, and whoever opens the link logs a warning.

User, password and service are percent-encoded. An IPv6 address stands in brackets.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from gemma_cli.rag.errors import InvalidInputError

SERVER_PORT: Final = 6379
SENTINEL_PORT: Final = 26379


class Kind(Enum):
    """How the servers behind a URL belong together."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens: host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """A user of a server's access list; its repr shows neither."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is encrypted. Paths are empty where the system's authorities, and no client certificate, do."""

    ca_certs: str = ""
    certfile: str = ""
    keyfile: str = ""
    verified: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL says. places: the server, some nodes of the cluster, or the Sentinels; service: the master's name."""

    kind: Kind
    places: tuple[Place, ...]
    db: int = 0
    service: str = ""
    login: Login = Login()
    sentinel_login: Login = Login()
    tls: Tls | None = None

    def __str__(self) -> str:
        """For messages: places and service, without login."""
        places = ", ".join(map(str, self.places))
        return f"{self.service} by {places}" if self.service else places


_SCHEMES: Final[Mapping[str, tuple[Kind, bool]]] = {
    f"{name}{plus}": (kind, name == "rediss")
    for name in ("redis", "rediss")
    for plus, kind in (("", Kind.STANDALONE), ("+cluster", Kind.CLUSTER), ("+sentinel", Kind.SENTINEL))
} | {"unix": (Kind.STANDALONE, False)}
_TLS_KEYS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "insecure")
_SENTINEL_KEYS: Final = ("sentinel_username", "sentinel_password")
_HOST: Final = re.compile(r"[^\s/?#@,:\[\]\\]+|\[[0-9a-fA-F:.]+(?:%[\w.]+)?\]")


def parse_url(url: str) -> Target:
    """Raises `InvalidInputError`, which names what is wrong and repeats nothing that may be a secret."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise InvalidInputError(f"url: is none of {', '.join(f'{known}://' for known in _SCHEMES)}")
    kind, encrypted = _SCHEMES[scheme]
    head, _, query = rest.partition("?")
    authority, slash, path = head.partition("/")
    login_text, at, hosts = authority.rpartition("@")
    if "@" in query or ("@" in path and scheme != "unix"):
        raise InvalidInputError(
            "url: an @ stands where none may; percent-encode user and password (@ is %40, / is %2F)"
        )
    login = _login(login_text) if at else Login()
    options = _options(scheme, kind, encrypted, query)
    if scheme == "unix":
        if hosts or not path:
            raise InvalidInputError("url: names no socket; write unix:///path/to.sock")
        place = Place(path=slash + _decoded(path, "the path"))
        return Target(kind, (place,), _number(options.get("db", "0")), login=login)
    places = tuple(_place(text, kind) for text in hosts.split(","))
    if len(places) > 1 and kind is Kind.STANDALONE:
        raise InvalidInputError("url: several servers; write redis+cluster:// or redis+sentinel:// for them")
    service, db = _path(path, kind)
    sentinel_login = Login(options.get("sentinel_username", ""), options.get("sentinel_password", ""))
    return Target(kind, places, db, service, login, sentinel_login, _tls(options) if encrypted else None)


def _decoded(text: str, what: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidInputError(f"url: {what} is not UTF-8, percent-encoded") from None


def _login(text: str) -> Login:
    username, _, password = text.partition(":")
    return Login(_decoded(username, "the user"), _decoded(password, "the password"))


def _place(text: str, kind: Kind) -> Place:
    """The text is not repeated: a badly encoded password may stand in it."""
    host, colon, port = text, "", ""
    if not text.endswith("]"):
        host, colon, port = text.rpartition(":")
        if not colon:
            host = text
    host = host if host.startswith("[") else _decoded(host, "a host")
    if not _HOST.fullmatch(host):
        raise InvalidInputError("url: a host is missing or no host (an IPv6 address stands in brackets)")
    default = SENTINEL_PORT if kind is Kind.SENTINEL else SERVER_PORT
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536):
        raise InvalidInputError("url: a port is no number from 1 to 65535; is the password percent-encoded?")
    return Place(host.strip("[]"), int(port) if colon else default)


def _path(path: str, kind: Kind) -> tuple[str, int]:
    """Service and number of the database."""
    service = ""
    if kind is Kind.SENTINEL:
        name, _, path = path.partition("/")
        service = _decoded(name, "the service")
        if not service:
            raise InvalidInputError("url: names no service; write redis+sentinel://host:port/<name of the master>")
    db = _number(path or "0")
    if db and kind is Kind.CLUSTER:
        raise InvalidInputError(f"url: database {db}, but a cluster has only 0; use namespaces")
    return service, db


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise InvalidInputError(f"url: {text!r} is no number of a database")
    return int(text)


def _options(scheme: str, kind: Kind, encrypted: bool, query: str) -> dict[str, str]:
    known = (
        ("db",)
        if scheme == "unix"
        else (_SENTINEL_KEYS if kind is Kind.SENTINEL else ()) + (_TLS_KEYS if encrypted else ())
    )
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name not in known:
            hint = f"there are {', '.join(known)}" if known else "it takes none"
            if name in _TLS_KEYS:
                hint = "it is for rediss://"
            elif name == "db":
                hint = "write the database as /db after the host"
            raise InvalidInputError(f"url: {scheme}:// does not know {name!r} in its query; {hint}")
        if name in options:
            raise InvalidInputError(f"url: {name!r} is given twice")
        options[name] = _decoded(value, name)
    return options


def _tls(options: Mapping[str, str]) -> Tls:
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in options and not Path(options[name]).is_file():
            raise InvalidInputError(f"url: {name}: there is no file {options[name]!r}")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise InvalidInputError("url: ssl_keyfile: needs ssl_certfile too")
    checks, insecure = options.get("ssl_cert_reqs", "required"), options.get("insecure", "false")
    if insecure not in ("true", "false"):
        raise InvalidInputError("url: insecure: is neither true nor false")
    if checks not in ("required", "none"):
        raise InvalidInputError("url: ssl_cert_reqs: is neither required nor none")
    if (checks == "none") != (insecure == "true"):
        raise InvalidInputError(
            "url: ssl_cert_reqs: none lets anybody pose as the server; name its authority with ssl_ca_certs=<file> or, "
            "where that does not matter, write ssl_cert_reqs=none&insecure=true"
        )
    return Tls(
        options.get("ssl_ca_certs", ""),
        options.get("ssl_certfile", ""),
        options.get("ssl_keyfile", ""),
        checks == "required",
    )
