"""What the tests of data share."""

import logging

import pytest


@pytest.fixture
def said(caplog):
    """The log, with jvdm's lines from INFO on."""
    caplog.set_level(logging.INFO, logger="jvdm")
    logging.getLogger("jvdm").propagate = True
    return caplog
