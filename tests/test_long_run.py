"""The short form of tests/campaigns/long_run.py."""

from __future__ import annotations

import tempfile


def test_harvest_train_encode_report_again_and_again_leaves_nothing(tmp_path, monkeypatch):
    """Files and handles; what grows more slowly shows in an hour alone."""
    from long_run import grown, run

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lines: list[str] = []
    found = run(0, 2, 1500, tmp_path, lines.append)
    assert len(found) == 2
    assert len(lines) >= 2
    failures = grown(found, growth=500)
    assert not [told for told in failures if not told.startswith("threads")]
    assert grown([*found, *(type(one)(**{**vars(one), "handles": one.handles + i}) for i, one in enumerate(found * 10))], 500)
