"""The table of the faults that the tests of the docstrings notice."""

import mutants
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_table_of_faults_against_the_docstrings_is_current():
    """Each has a name of its own, and is noticed by the test file named for it."""
    names = [fault.name for fault in (*mutants.MUTANTS, *mutants.DOCUMENTED)]
    assert len(set(names)) == len(names)
    rows = mutants.read(mutants.DOCUMENTED_TABLE)
    assert list(rows) == [fault.name for fault in mutants.DOCUMENTED], "run `make mutants`"
    named = {fault.name: fault.tests.split()[0] for fault in mutants.DOCUMENTED}
    assert [name for name in named if not rows[name]["tests"].startswith(f"{named[name]}::")] == []
