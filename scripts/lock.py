"""requirements.lock: exact versions within the ranges, for Python 3.11 on Linux x86_64 without accelerator.

    python3.11 scripts/lock.py           # write it: the newest versions that requirements.txt allows
    python3.11 scripts/lock.py --check   # exit with one line if it no longer satisfies requirements.txt
    pip install --require-hashes -r requirements.lock

Each line has the hash of the one file that pip takes on that platform. Other platforms need another lock.
"""

import argparse
import json
import pathlib
import platform
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
REQUIREMENTS, LOCK = ROOT / "requirements.txt", ROOT / "requirements.lock"


def normalized(name: str) -> str:
    """The name of a package as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """The versions of a lock file by normalized name."""
    lines = re.findall(r"^([\w.-]+)==(\S+)", text, re.M)
    return {normalized(name): version for name, version in lines}


def complaints(requirements: str, lock: str) -> list[str]:
    """How a lock file fails the ranges, one line for each requirement.

    Args:
        requirements: the text of requirements.txt.
        lock: the text of requirements.lock.
    """
    from packaging.requirements import Requirement

    versions, found = locked(lock), []
    for line in requirements.splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        version = versions.get(normalized(requirement.name))
        if version is None:
            found.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name}=={version} is not {requirement.specifier}")
    return found


def resolve() -> str:
    """The lock of this interpreter: what pip would install, with the hash of each file."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--report", "-", "-r", str(REQUIREMENTS)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    lines = []
    for each in report["install"]:
        digest = each["download_info"]["archive_info"]["hashes"]["sha256"]
        name = normalized(each["metadata"]["name"])
        lines.append(f"{name}=={each['metadata']['version']} --hash=sha256:{digest}\n")
    machine = (
        f"Python {'.'.join(platform.python_version_tuple()[:2])}, {platform.system()} {platform.machine()}"
    )
    return f"# {machine}; written by scripts/lock.py from requirements.txt.\n" + "".join(sorted(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether the lock satisfies the ranges")
    if parser.parse_args().check:
        found = complaints(REQUIREMENTS.read_text(), LOCK.read_text())
        if found:
            sys.exit(f"requirements.lock: {'; '.join(found)}; run python3.11 scripts/lock.py")
        return
    if sys.version_info[:2] != (3, 11) or platform.system() != "Linux" or platform.machine() != "x86_64":
        sys.exit("requirements.lock is for Python 3.11 on Linux x86_64; run this there")
    LOCK.write_text(resolve())


if __name__ == "__main__":
    main()
