"""The API against its own description: no request that it describes, or that is close to it, is a server error."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from services import make_store
from splinterp.service.app import make_app
from splinterp.service.guard import Access
from splinterp.service.schedule import Slots
from splinterp.service.service import Service

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = 25
HERE = {"Host": "127.0.0.1"}


def test_no_request_is_a_server_error_and_every_answer_is_as_described(tmp_path):
    """The manager's loop does not run: jobs are queued, and nothing starts."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    make_store(tmp_path / "acts.zarr")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"settings": {"k": 4}}')
    (tmp_path / "run" / "metrics.jsonl").write_text('{"rows": 1, "seconds": 0.5, "fvu": NaN, "held_out_fvu": 0.5}\n')
    service = Service(tmp_path, Slots((), 2), most_jobs=500)
    service.submit("train", ["--store", "acts.zarr"])
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", make_app(service, Access(None)), headers=HERE)
    looked = (
        not_a_server_error, checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance,
    )  # fmt: skip
    tried, statuses = set[str](), set[int]()
    for found in schema.get_all_operations():
        operation = found.ok()
        if "/events/" in operation.path:  # they have no end
            continue

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def try_it(case):
            answer = case.call(headers=HERE)
            statuses.add(answer.status_code)
            case.validate_response(answer, checks=list(looked))

        try_it()
        tried.add(operation.label)
    assert len(tried) >= 15
    assert 200 in statuses
    assert 422 in statuses
    service.close()
