"""A RabbitMQ 4 beside the machine's own: ``python -m tests.rabbitmq4`` says where it is.

``RABBITMQ4_HOME`` names one that is unpacked. Without it the packages of the Debian that has it
come from the machine's own apt sources, with the suite's name replaced, and are unpacked into the
cache folder with the libraries they need: nothing is installed, and what is stays as it is.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers import RabbitServer, ServerMissing

__all__ = ["home", "server"]

#: Which Debian has a RabbitMQ 4, by the one that the machine has.
_HAS_IT = {"bookworm": "trixie", "trixie": "trixie"}
#: What is unpacked of all that the package needs: Erlang, and the libraries that it is linked with.
_PACKAGES = re.compile(r"rabbitmq-server|erlang-.*|zlib1g|lib(?!python).*")
_SECONDS = 300.0


def server(version: str) -> RabbitServer:
    """A RabbitMQ of that *version*: ``4``, or empty for the one that is installed."""
    if version not in ("", "4"):
        raise ServerMissing(f"RABBITMQ={version}: only 4 can be asked for")
    return RabbitServer(home() if version else None)


def home() -> Path:
    """The root of an unpacked RabbitMQ 4; raises ServerMissing if there can be none."""
    if named := os.environ.get("RABBITMQ4_HOME"):
        if not Path(named).is_dir():
            raise ServerMissing(f"RABBITMQ4_HOME={named} is no folder")
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "celery_resilience")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "rabbitmq4.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of pytest may want it at once
        root = cache / "rabbitmq4"
        if not root.is_dir():
            with tempfile.TemporaryDirectory(prefix="rabbitmq4-", dir=cache) as scratch:
                unpacked = _unpack(Path(scratch))
                _bring_libraries(unpacked, root)
                unpacked.rename(root)
    return root


def _unpack(scratch: Path) -> Path:
    """The packages' files, in a folder below *scratch*."""
    for folder in ("lists/partial", "cache/archives/partial", "sources", "packages", "root"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()  # as if nothing were installed: so all libraries are named
    for name, text in _sources():
        (scratch / "sources" / name).write_text(text)
    _apt(scratch, "update")
    plan = _apt(scratch, "--simulate", "install", "--no-install-recommends", "rabbitmq-server")
    names = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
    version = "".join(re.findall(r"^Inst rabbitmq-server \((\S+)", plan, re.MULTILINE))
    if not version.startswith("4."):
        raise ServerMissing(f"apt has no RabbitMQ 4, but {version or 'none'}: set RABBITMQ4_HOME")
    _apt(scratch, "download", *filter(_PACKAGES.fullmatch, names))
    for package in sorted((scratch / "packages").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(scratch / "root")], scratch)
    return scratch / "root"


def _sources() -> Iterator[tuple[str, str]]:
    """The machine's apt sources, of the Debian that has it: the files' names and texts."""
    release = _read(Path("/etc/os-release"))
    suite = "".join(re.findall(r"^VERSION_CODENAME=(\S+)", release, re.MULTILINE))
    if suite not in _HAS_IT or shutil.which("apt-get") is None:
        raise ServerMissing("this system has no package of RabbitMQ 4: set RABBITMQ4_HOME")
    word = re.compile(rf"(?<![\w-]){suite}(?!\w)")
    for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
        apart = r"\n\s*\n" if path.suffix == ".sources" else r"\n"
        entries = [each for each in re.split(apart, _read(path)) if word.search(each)]
        if entries:
            between = "\n\n" if path.suffix == ".sources" else "\n"
            yield path.name, word.sub(_HAS_IT[suite], between.join(entries)) + "\n"


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _apt(scratch: Path, *arguments: str) -> str:
    """Run apt-get on folders of our own; it reads the machine's settings, and changes nothing."""
    options = {
        "Dir::State": scratch,
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": scratch / "sources",
        "APT::Sandbox::User": "root",
        "APT::Update::Post-Invoke-Success": "",
    }
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return _run(["apt-get", "-q", *given, *arguments], scratch / "packages")


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode != 0:
        raise ServerMissing(f"RabbitMQ 4 could not be had: {' '.join(command)}: {done.stderr}")
    return done.stdout


def _bring_libraries(unpacked: Path, root: Path) -> None:
    """Let Erlang's programs, which are to lie in *root*, run with the libraries they came with."""
    (loader,) = unpacked.glob("usr/lib*/ld-linux-*.so.*")
    folders = {path.parent for path in unpacked.glob("usr/lib/*-linux-gnu*/*.so*")}
    folders.add(loader.parent)
    path = ":".join(str(root / folder.relative_to(unpacked)) for folder in sorted(folders))
    start = f"{root / loader.relative_to(unpacked)} --library-path {path}"
    for program in unpacked.glob("usr/lib/erlang/**/bin/*"):
        if program.is_symlink() or program.read_bytes()[:4] != b"\x7fELF":
            continue
        elf = program.rename(program.with_name(f"{program.name}.elf"))
        program.write_text(f'#!/bin/sh\nexec {start} {root / elf.relative_to(unpacked)} "$@"\n')
        program.chmod(0o755)
    for script in unpacked.glob("usr/lib/erlang/**/bin/erl"):
        text = script.read_text()
        script.write_text(text.replace("ROOTDIR=/usr/lib", f"ROOTDIR={root}/usr/lib"))


if __name__ == "__main__":
    try:
        print(home())
    except ServerMissing as missing:
        sys.exit(str(missing))
