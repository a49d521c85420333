"""Tests of ``gauss_flows.made``."""

import pytest
from network_support import built

import gauss_flows as gf

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_hidden_units_of_a_masked_network_share_all_useful_degrees():
    made = lambda inputs: built(lambda key: gf.conditioners.made(6, 2)(inputs, (-1, 0, 1), key=key))
    assert made((0, 1, 2)).degrees[1:3] == ((0, 0, 0, 1, 1, 1),) * 2
    assert made((0, 1, 2, -1)).degrees[1:3] == ((-1, -1, 0, 0, 1, 1),) * 2  # with a condition
