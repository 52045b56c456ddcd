"""inspect_wheel.py WHEEL: fails if it is too large, lacks a part, or its extension is linked with libpq."""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

LARGEST = 3_000_000  # bytes
PARTS = {"pgpoll/__init__.py", "pgpoll/core.pyi", "pgpoll/py.typed"}

wheel = pathlib.Path(sys.argv[1])
print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")
if wheel.stat().st_size > LARGEST:
    sys.exit(f"more than {LARGEST:,} bytes")
with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as directory:
    names = set(archive.namelist())
    print(*sorted(names), sep="\n")
    if missing := PARTS - names:
        sys.exit(f"missing: {missing}")
    modules = [name for name in names if name.endswith(".so")]
    if len(modules) != 1:
        sys.exit(f"one extension was expected, not {modules}")
    libraries = subprocess.run(
        ["ldd", archive.extract(modules[0], directory)], capture_output=True, text=True, check=True
    ).stdout
print(libraries)
if "libpq" in libraries:
    sys.exit("the extension is linked with libpq")
