"""docs/configuration.md is what the schema and the YAML say."""

from __future__ import annotations

import pytest

from appliance.config import reference
from appliance.config.check import keys


def test_the_configuration_page_is_current(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.main(["--check"]) == 0
    monkeypatch.setattr(reference, "INTRODUCTION", "# Something else\n")
    assert reference.main(["--check"]) == 1
    assert "make docs" in capsys.readouterr().err


def test_every_key_is_on_the_configuration_page() -> None:
    page = reference.reference()
    for key in keys():
        assert f"| `{key.name}` | {key.type}" in page
