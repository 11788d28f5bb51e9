"""What do we install? Locked versions with hashes, under licences that are known and allowed. Part of `make audit`.

Its one rule: an unknown licence is refused. Limits: a distribution states its licence itself; the tools of `make audit`
live in an environment of their own.
"""

import re
from importlib.metadata import Distribution, distributions

import pytest

from tests.servers import ROOT

LOCKS = ("requirements.txt", "requirements-dev.txt", "requirements-audit.txt")
ALLOWED = {
    *("MIT", "MIT-CMU", "MIT License", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC"),
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


@pytest.mark.parametrize("lock", LOCKS)
def test_it_locks_every_requirement_by_version_and_hashes(lock):
    entries = entries_of(lock)
    assert len(entries) > 10
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
