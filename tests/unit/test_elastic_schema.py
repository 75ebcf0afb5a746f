"""Templates and mappings are named by a version: a change of them is a new one, or indices would differ under one name."""

from __future__ import annotations

from keystone.sinks.elastic_schema import INDEXED_KINDS, VERSION, template

#: Raise VERSION with every change, and write the new digests here.
DIGESTS = {1: {"alerts": "e8f245a97497adef", "sessions": "340af632747001d8", "cohorts": "be0ff76e8154ee04"}}


def test_a_change_of_the_templates_is_a_new_version() -> None:
    assert {kind: template(kind)["_meta"]["digest"] for kind in INDEXED_KINDS} == DIGESTS[VERSION]


def test_indices_tell_by_which_template_they_were_made() -> None:
    for kind in INDEXED_KINDS:
        body = template(kind)
        assert body["template"]["mappings"]["_meta"] == body["_meta"]
        assert body["version"] == VERSION
