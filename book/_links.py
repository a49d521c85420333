"""Ask for every outside address in the repository's text, and list those that do not answer.

``python book/_links.py`` needs the network, so no test runs it; a scheduled workflow does. Links inside the
site are checked by ``tests/test_site.py``.
"""

import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = (".md", ".ipynb", ".py", ".cff", ".bib", ".toml", ".yml")
ADDRESS = re.compile(r"https?://[\w.-]+\.[a-z]+(?:/[\w./~%?=&#+-]*)?")


def addresses() -> dict[str, str]:
    """Each address, and a file that has it."""
    listed = subprocess.run(
        ["git", "ls-files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for name in listed.stdout.splitlines():
        if name.endswith(SUFFIXES) and (ROOT / name).is_file():
            for address in ADDRESS.findall((ROOT / name).read_text()):
                found.setdefault(address.rstrip("."), name)
    return found


def fault(address: str) -> str:
    """What is wrong with an address, nothing if it answers."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0"})
    try:
        with urllib.request.urlopen(request, timeout=30):
            return ""
    except urllib.error.HTTPError as error:
        # These two refuse a robot, not a reader.
        return "" if error.code in (403, 429) else str(error)
    except OSError as error:
        return str(error)


def main() -> int:
    found = addresses()
    faults = {a: why for a in found if (why := fault(a))}
    for address, why in faults.items():
        print(f"{found[address]}: {address}: {why}")
    print(f"{len(found)} addresses, {len(faults)} of them without an answer")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
