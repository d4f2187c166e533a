"""A path or a URL names a store; what is neither is an error."""

import pytest

from metalora.serving.store import open_store


@pytest.mark.parametrize("url", ("postgres://secret@host/x", "sqlite:///x.db", "mysql://secret@host/x"))
def test_an_unknown_kind_of_store_is_refused_with_those_that_are_known(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"unknown kind of store .*known: postgresql://, a path") as error:
        open_store(url)
    assert "secret" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_store_that_is_not_there_is_created_only_if_asked(tmp_path):
    path = tmp_path / "tasks.db"
    with pytest.raises(ValueError, match="tasks.db: there is no store"):
        open_store(path, create=False)
    assert not path.exists()
    open_store(path).close()
    open_store(path, create=False).close()
