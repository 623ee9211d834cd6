"""The web service does what its OpenAPI document says: schemathesis tries it."""

from __future__ import annotations

import warnings
from pathlib import Path

import hypothesis
from auditing import assessment
from web_service import bearer, listening, made

from medqa.audit import Store
from medqa_plugins.web.settings import Limits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what schemathesis imports
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance


def test_every_operation_answers_as_documented(tmp_path: Path) -> None:
    # No worker runs: a request is answered by its job.
    site = made(tmp_path, Limits(wait_seconds=0.01, rate="100000/minute"))
    key = bearer(site.keys["admin"])
    with Store.open(site.db) as store:
        for _ in range(3):
            store.add(assessment())
    tried = []
    with listening(site.app) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()

            @hypothesis.settings(max_examples=12, suppress_health_check=[*hypothesis.HealthCheck])
            @hypothesis.given(case=operation.as_strategy())
            def answers(case: schemathesis.Case) -> None:
                # JSON Schema has no words for "candidate.7 where there is reference.7".
                beyond = [positive_data_acceptance] if case.path == "/assess/batch" else []
                case.call_and_validate(headers=key, excluded_checks=beyond)

            answers()
            tried.append(operation.label)
    assert "POST /assess" in tried
    assert len(tried) == 13
