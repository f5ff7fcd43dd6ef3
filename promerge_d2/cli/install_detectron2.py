"""Install detectron2 for the Python that runs this script.

A detectron2 that can be imported is left alone. Otherwise one of two ways is taken:

- by default, the wheel ``sal-detectron2`` from the package index: upstream detectron2 of August
  2024, tagged for CPython 3.10 because of a compiled ``_C``. Nothing that promerge_d2 uses needs
  ``_C``, so it is left out and what remains is pure Python, for any version. No compiler needed;
- with ``--from-source``, upstream from git, compiled here (needs git and a C++ compiler).

This file needs nothing but pip, so that it runs by itself before promerge_d2 is installed. Exit
codes: 0 detectron2 can be imported, 1 the installation did not finish, 3 refused (a broken
detectron2 is in the way, or the download is not the pinned file).
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger(__name__)

WHEEL_NAME = "sal-detectron2"
WHEEL_VERSION = "0.7.2"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
SOURCE_URL = "git+https://github.com/facebookresearch/detectron2.git"
LICENCE = "Apache-2.0"

# Left out: compiled for CPython 3.10 only; and a package "tools" that would shadow everybody's.
DROPPED = re.compile(r"detectron2/_C[^/]*\.(so|pyd)$|tools/")
# Requirements of the wheel that do not hold: it runs with numpy 2, and needs black nowhere but in a
# debugging aid that imports it when called.
WRONG_REQUIREMENTS = re.compile(r"Requires-Dist: (numpy<2|black)\n")
# Requirements that the wheel forgets; model_zoo needs pkg_resources, gone in setuptools 81.
SETUPTOOLS = "setuptools<81"
MISSING_REQUIREMENTS = ("numpy", "torch", "torchvision", "fvcore", "iopath", SETUPTOOLS)

# detectron2.model_zoo imports nearly all of detectron2, so a half-broken one shows here.
PROBE = """
import json
try:
    import detectron2
    import detectron2.model_zoo
    found = {"version": getattr(detectron2, "__version__", "?"), "path": detectron2.__path__[0]}
except Exception as error:
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    found = {"missing": name, "error": f"{type(error).__name__}: {error}"}
print(json.dumps(found))
"""


EXIT_OK, EXIT_NOT_FINISHED, EXIT_REFUSED = 0, 1, 3  # as in promerge_d2.utils.errors


class ArgumentParser(argparse.ArgumentParser):
    """Refuse a bad command line with this repository's exit code instead of argparse's 2."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_REFUSED, f"{self.prog}: error: {message}\n")


class InstallError(Exception):
    """An installation that stopped, with the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def probe() -> dict[str, str | None]:
    """Import detectron2 in a new process of this interpreter.

    Returns:
        ``version`` and ``path`` when it imports; else ``error``, one line, and ``missing``, the
        name of the module that was not found, ``None`` after any other error.
    """
    # In a folder of its own: a clone of detectron2 in the current one must not be taken for it.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=folder, check=False
        )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"missing": None, "error": f"Python ended with code {done.returncode}: {last}"}
    return json.loads(lines[-1])


def pip(*arguments: str) -> None:
    """Run pip with this interpreter; it prints errors only.

    Raises:
        InstallError: pip failed; its own message is on stderr.
    """
    logger.info("pip %s", " ".join(arguments))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        raise InstallError(
            f"`pip {' '.join(arguments)}` failed, see its message above.", EXIT_NOT_FINISHED
        )


def download_wheel(folder: Path) -> Path:
    """Download the pinned wheel into an empty folder and check its hash.

    Raises:
        InstallError: pip failed, or the file is another one than the pinned.
    """
    pip(
        "download",
        f"{WHEEL_NAME}=={WHEEL_VERSION}",
        "--python-version=3.10",
        "--only-binary=:all:",
        "--no-deps",
        f"--dest={folder}",
    )
    (wheel,) = folder.iterdir()
    check_sha256(wheel, WHEEL_SHA256)
    return wheel


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file's SHA-256 with the expected one, in hexadecimal.

    Raises:
        InstallError: they differ.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(
            f"{path.name} has SHA-256 {found}, but {expected} is expected. It is not the file that "
            "promerge_d2 was tested with and was not installed. Ask the package index's keeper, "
            "or build upstream with `promerge env --install-detectron2 --from-source`.",
            EXIT_REFUSED,
        )


def repack_wheel(wheel: Path, folder: Path) -> Path:
    """Write a pure-Python version of a detectron2 wheel.

    Leaves out the compiled ``_C`` and the top-level package ``tools``, corrects the requirements,
    sets the tag ``py3-none-any`` and writes a new RECORD.

    Args:
        wheel: The wheel; it is left as it is.
        folder: Existing folder for the new one.

    Returns:
        Path of the new wheel, named by its tag.
    """
    name, version = wheel.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    result = folder / f"{name}-{version}-py3-none-any.whl"
    edits = {
        f"{info}/WHEEL": _edit_wheel_file,
        f"{info}/METADATA": _edit_metadata,
        f"{info}/top_level.txt": lambda text: "detectron2\n",
    }
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            if DROPPED.match(item.filename) or item.filename == f"{info}/RECORD":
                continue
            data = old.read(item)
            if item.filename in edits:
                data = edits[item.filename](data.decode()).encode()
            new.writestr(item, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow([item.filename, f"sha256={digest}", len(data)])
        rows.writerow([f"{info}/RECORD", "", ""])
        new.writestr(f"{info}/RECORD", record.getvalue())
    return result


def _edit_wheel_file(text: str) -> str:
    kept = [line for line in text.splitlines() if line and not line.startswith(("Tag:", "Root-Is"))]
    return "\n".join([*kept, "Root-Is-Purelib: true", "Tag: py3-none-any", ""])


def _edit_metadata(text: str) -> str:
    added = "".join(f"Requires-Dist: {requirement}\n" for requirement in MISSING_REQUIREMENTS)
    # Before the first requirement, which is a header for sure: a description may follow them.
    head, separator, tail = WRONG_REQUIREMENTS.sub("", text).partition("Requires-Dist:")
    return head + added + separator + tail


def install_wheel() -> None:
    """Download, repack and install the pinned wheel."""
    with tempfile.TemporaryDirectory() as scratch:
        downloaded, repacked = Path(scratch, "downloaded"), Path(scratch, "repacked")
        downloaded.mkdir()
        repacked.mkdir()
        pip("install", str(repack_wheel(download_wheel(downloaded), repacked)))


def install_from_source() -> None:
    """Build and install upstream detectron2 from git."""
    pip("install", SETUPTOOLS, "wheel")
    pip("install", "--no-build-isolation", SOURCE_URL)


def install(from_source: bool) -> str:
    """Make detectron2 importable, unless it is already.

    Args:
        from_source: Build upstream instead of taking the wheel.

    Returns:
        A line saying what is there now and where it came from.

    Raises:
        InstallError: See its message and the exit codes at the top of this file.
    """
    found = probe()
    if found.get("missing") == "pkg_resources":
        logger.info("detectron2 is there, but setuptools is too new for it")
        pip("install", SETUPTOOLS)
        found = probe()
    if "error" not in found:
        return f"detectron2 {found['version']} is already in {found['path']}: left alone."
    if found["missing"] != "detectron2":
        raise InstallError(
            f"A detectron2 is installed for {sys.executable} but cannot be imported "
            f"({found['error']}). It was left as it is: repair it, or remove it with "
            "`pip uninstall detectron2 sal-detectron2` and run this again.",
            EXIT_REFUSED,
        )
    if from_source:
        install_from_source()
        origin = SOURCE_URL
    else:
        install_wheel()
        origin = f"{WHEEL_NAME}=={WHEEL_VERSION} of the package index, without its compiled _C"
    found = probe()
    if "error" in found:
        raise InstallError(
            f"detectron2 was installed from {origin}, but cannot be imported ({found['error']}).",
            EXIT_NOT_FINISHED,
        )
    return f"Installed detectron2 {found['version']} from {origin} ({LICENCE}) to {found['path']}."


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Install detectron2 for this Python, unless it is there.")
    parser.add_argument(
        "--from-source",
        action="store_true",
        help="build upstream detectron2 from git (needs a compiler) instead of the wheel",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(install(options.from_source))
    except InstallError as error:
        logger.error("install_detectron2: %s", error)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
