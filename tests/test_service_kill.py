"""The short form of tests/campaigns/kill_service.py."""

from __future__ import annotations

from argparse import Namespace


def test_no_job_is_lost_or_doubled_by_kills_of_the_service(tmp_path):
    from kill_service import campaign

    summary, failures = campaign(Namespace(kills=3, seed=1, open=3), tmp_path)
    assert failures == []
    assert summary["kills of the service"] == "3"
