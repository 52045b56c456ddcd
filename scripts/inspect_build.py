"""What the installed extension is made of: prints its size and its libraries; fails if libpq is among them."""

import pathlib
import subprocess
import sys

from pgpoll import core

LARGEST = 3_000_000  # bytes: the wheel's limit

module = pathlib.Path(core.__file__)
libraries = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=True).stdout
print(f"{module.name}: {module.stat().st_size:,} bytes\n{libraries}")
if "libpq" in libraries:
    sys.exit("the extension is linked with libpq")
for wheel in map(pathlib.Path, sys.argv[1:]):
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")
    if wheel.stat().st_size > LARGEST:
        sys.exit(f"{wheel.name} has more than {LARGEST:,} bytes")
