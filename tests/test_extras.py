import json.decoder
import sys

import pytest

from art_logits._extras import require


def test_returns_the_submodule_itself():
    assert require("json.decoder", extra="evaluate") is json.decoder


def test_missing_distribution_names_the_caller_and_what_to_type():
    expected = (
        r'test_extras needs not_there_at_all, which is not installed: pip install "art-logits\[evaluate\]"'
    )
    with pytest.raises(ImportError, match=expected) as caught:
        require("not_there_at_all.inner", extra="evaluate")
    assert caught.value.name == "not_there_at_all"


def test_an_installed_module_that_lacks_a_dependency_raises_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package_xyz.py").write_text("import its_missing_dependency_xyz\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_missing_dependency_xyz") as caught:
        require("broken_package_xyz", extra="evaluate")
    assert "art-logits[" not in str(caught.value)
    assert "broken_package_xyz" not in sys.modules
