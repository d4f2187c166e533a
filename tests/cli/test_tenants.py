"""`metalora tenants`: a key is printed once and works until it is revoked."""

import json

from metalora.serving.keys import key_digest
from metalora.serving.store import open_store
from support.command import check_usage, metalora_command


def test_tenants_are_added_listed_and_revoked(tmp_path):
    path = tmp_path / "tasks.db"
    options = ("--store", path)
    code, key, _ = metalora_command("tenants", "add", "anna", *options)
    assert code == 0 and len(key) == 47
    code, out, _ = metalora_command("tenants", "add", "Bört", *options, "--json")
    assert code == 0 and json.loads(out)["name"] == "Bört"
    store = open_store(path)
    assert store.tenant_of(key_digest(key.strip())).name == "anna"
    assert store.tenant_of(key_digest(json.loads(out)["key"])).name == "Bört"
    assert metalora_command("tenants", "revoke", "anna", *options)[0] == 0
    assert store.tenant_of(key_digest(key.strip())) is None
    store.close()
    code, out, _ = metalora_command("tenants", "list", *options, "--json")
    assert [(row["name"], row["revoked"]) for row in json.loads(out)] == [("anna", True), ("Bört", False)]
    code, out, _ = metalora_command("tenants", "list", *options)
    assert code == 0 and "anna" in out and key.strip() not in out


def test_mistakes_are_one_line(tmp_path):
    path = tmp_path / "tasks.db"
    mistakes = {
        ("add",): "tenants add needs a NAME",
        ("list", "anna"): "tenants list takes no name",
        ("list",): "tasks.db: there is no store",
        ("revoke", "anna"): "tasks.db: there is no store",
    }
    for arguments, message in mistakes.items():
        code, out, err = metalora_command("tenants", *arguments, "--store", path)
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err
    assert not path.exists()
    metalora_command("tenants", "add", "anna", "--store", path)
    assert "did you mean 'anna'?" in metalora_command("tenants", "revoke", "ana", "--store", path)[2]
    check_usage(metalora_command, f"tenants remove anna --store {path}")
