"""PgBouncer before a server, for tests: `with PgBouncer(dsn, pool_mode="transaction") as pooler: ... pooler.dsn`."""

from __future__ import annotations

import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
from typing import Self


class PgBouncer:
    """One pooler for anybody who trusts it. `settings` (strings) go to its [pgbouncer] section.

    Raises RuntimeError, with its log, where it does not come up.
    """

    def __init__(self, dsn: str, **settings: str) -> None:
        self._behind = urllib.parse.urlsplit(dsn)
        self._settings = settings
        self._directory = pathlib.Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.dsn = ""

    def __enter__(self) -> Self:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="pgpoll-pgbouncer-"))
        behind = self._behind
        (self._directory / "users").write_text('"postgres" ""\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": str(self._directory / "users"),
            "ignore_startup_parameters": "extra_float_digits",
        } | self._settings
        lines = [f"* = host={behind.hostname} port={behind.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self._directory / "ini").write_text("[databases]\n" + "\n".join(lines) + "\n")
        self._directory.chmod(0o755)
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # it refuses to run as root
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["pgbouncer", self._directory / "ini"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
            )
        self.dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return self
            time.sleep(0.02)
        text = (self._directory / "log").read_text(errors="replace")
        self.__exit__()
        raise RuntimeError(f"PgBouncer did not start:\n{text}")

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self._directory, ignore_errors=True)
