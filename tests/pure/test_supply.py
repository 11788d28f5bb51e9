"""What do we install? Locked versions with hashes, under licences that are known and allowed. Part of `make audit`.

Its one rule: an unknown licence is refused. Limits: a distribution states its licence itself; the tools of `make audit`
live in an environment of their own.
"""

import re
import subprocess
from importlib.metadata import Distribution, distributions

import pytest

from tests.servers import ROOT

LOCKS = ("requirements.txt", "requirements-dev.txt", "requirements-audit.txt")
EXTRAS = ("extras/sentry.txt", "extras/opentelemetry.txt")
ALLOWED = {
    *("MIT", "MIT-0", "MIT-CMU", "MIT License", "0BSD", "ISC"),
    *("BSD License", "3-Clause BSD License", "BSD-2-Clause", "BSD-3-Clause"),
    *("Apache-2.0", "Apache Software License", "PSF-2.0", "Python Software Foundation License", "ZPL-2.1"),
}
# Distributions under a licence that asks for something, and why we may use them as they are.
LGPL, MPL = {"LGPL-3.0-only", "LGPLv3"}, {"MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"}
EXCEPTIONS = {
    **dict.fromkeys(("psycopg", "psycopg-binary", "psycopg-pool", "python-crontab"), LGPL),  # imported, not changed
    **dict.fromkeys(("certifi", "hypothesis", "pathspec"), MPL),  # imported, not changed
}


def licences_of(distribution: Distribution) -> set[str]:
    """The licences that a distribution states, all of which hold; one of several may be chosen after "OR"."""
    stated = distribution.metadata
    trove = [
        each.rpartition(" :: ")[2] for each in stated.get_all("Classifier") or [] if each.startswith("License :: ")
    ]
    trove = [each for each in trove if each != "OSI Approved"]
    text = stated.get("License-Expression") or " AND ".join(trove) or (stated.get("License") or "").partition("\n")[0]
    return set(text.split(" AND "))


def is_allowed(distribution: Distribution) -> bool:
    name = str(distribution.metadata["Name"]).lower().replace("_", "-")
    allowed = ALLOWED | EXCEPTIONS.get(name, set())
    return all(set(licence.split(" OR ")) & allowed for licence in licences_of(distribution))


def entries_of(lock: str) -> list[str]:
    """The requirements of a lock file, each with its hashes in one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


NAMED, SKIPPED = (
    '{"dependencies": [{"name": "a", "vulns": []}]}',
    '{"dependencies": [{"name": "a", "skip_reason": "x"}]}',
)


@pytest.mark.parametrize(
    ("status", "written", "passes", "said"),
    [
        (0, NAMED, True, ""),
        (0, SKIPPED, True, "this package index does not offer them"),
        (1, NAMED, False, "a-sentence-of-the-log"),
        (1, "", False, "a-sentence-of-the-log"),  # the look-up itself failed
        (0, "", False, "a-sentence-of-the-log"),
    ],
)
def test_it_fails_an_audit_that_could_not_look_up_vulnerabilities(tmp_path, status, written, passes, said):
    """The tools are replaced: only what the Makefile makes of their answers is at stake."""
    tools = {".venv/bin/python": "", ".venv/bin/pytest": "", ".venv-audit/bin/cyclonedx-py": ""}
    write = f"echo '{written}' > var/vulnerabilities.json;" if written else ""
    tools[".venv-audit/bin/pip-audit"] = f"{write} echo a-sentence-of-the-log >&2; exit {status}"
    for name, script in tools.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o700)
    for name in (*LOCKS, ".venv/develops", ".venv-audit/audits"):  # stamps: all is installed
        (tmp_path / name).touch()
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    done = subprocess.run(["make", "audit"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is passes, done.stderr
    assert said in done.stdout + done.stderr
    assert ("does not offer" in done.stdout) is ("does not offer" in said)


@pytest.mark.parametrize(("lock", "least"), [*((lock, 11) for lock in LOCKS), *((lock, 3) for lock in EXTRAS)])
def test_it_locks_every_requirement_by_version_and_hashes(lock, least):
    entries = entries_of(lock)
    assert len(entries) >= least
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry


def test_it_installs_only_distributions_under_allowed_licences():
    refused = {str(each.metadata["Name"]): licences_of(each) for each in distributions() if not is_allowed(each)}
    assert refused == {}


@pytest.mark.parametrize(
    ("stated", "allowed"),
    [
        ("License-Expression: MIT", True),
        ("License-Expression: GPL-3.0-only OR MIT", True),
        ("License-Expression: MIT AND GPL-3.0-only", False),
        ("License-Expression: AGPL-3.0-or-later", False),
        ("License-Expression: LGPL-3.0-only", False),
        ("Classifier: License :: OSI Approved :: BSD License", True),
        ("Classifier: License :: OSI Approved", False),
        ("License: Apache-2.0", True),
        ("License: ask us", False),
        ("Summary: no licence", False),
    ],
)
def test_it_refuses_other_and_unknown_licences(tmp_path, stated, allowed):
    (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.4\nName: it\nVersion: 1\n{stated}\n")
    assert is_allowed(Distribution.at(tmp_path)) == allowed
