"""The port that the studio listens on, on this machine alone."""

from __future__ import annotations

import contextlib
import secrets
import socket

import uvicorn

from promerge_d2.studio.app import build_app
from promerge_d2.studio.guard import Guard
from promerge_d2.studio.session import Session
from promerge_d2.utils.errors import UserError

ADDRESS = "127.0.0.1"


def open_port(port: int) -> socket.socket:
    """Open a port of this machine that no other machine reaches.

    Args:
        port: 0 for any that is free.

    Raises:
        UserError: it is none, busy, or not this user's to open.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; it takes 0 to 65535")
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((ADDRESS, port))
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise UserError(
            f"port {port} cannot be opened: {error.strerror}; choose another, or --port 0 for any "
            "that is free"
        ) from error
    return opened


class Server:
    """A session on a port.

    Args:
        session: what answers.
        port: of ``open_port``; it is closed in the end.

    Attributes:
        url: the address of the page, with the token.
    """

    def __init__(self, session: Session, port: socket.socket) -> None:
        self._port = port
        number = port.getsockname()[1]
        token = secrets.token_urlsafe(24)
        self.url = f"http://{ADDRESS}:{number}/?token={token}"
        self.app = Guard(build_app(session), number, token)
        config = uvicorn.Config(
            self.app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Answer until SIGINT or SIGTERM, or ``stop`` is called."""
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended
            self._server.run(sockets=[self._port])

    def stop(self) -> None:
        """End ``run``, from another thread."""
        self._server.should_exit = True
