"""Nothing is written over a file that is there without --overwrite, and nothing ever over what a command reads."""

import pytest

from metalora._util.overwriting import check_output
from metalora.bench.store import RowStore
from support.command import metalora_command, write_resnet_adapter

RESNET = "--model timm:resnet10t@{}/resnet.safetensors"
WORDS = b"the work of somebody else\n"
VERBS = {  # {} is the folder of files, OUT the file of somebody else
    "inspect --draw": "inspect --draw OUT --method lora",
    "merge": f"merge {{}}/adapter.safetensors {RESNET} --out OUT",
    "export to kohya": f"export {{}}/adapter.safetensors --to kohya {RESNET} --out OUT",
    "convert": f"convert {{}}/lora {RESNET} --method lotr --out OUT",
    "import": f"import {{}}/lora {RESNET} --out OUT",
    "combine": f"combine {{}}/adapter.safetensors --weights 1 {RESNET} --out OUT",
    "predict": "predict {}/task {}/inputs.csv --out OUT",
    "bench --plot": "bench --plot OUT",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An adapter of a network of timm, and its weights."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("files")
    write_resnet_adapter(folder)
    return folder


@pytest.mark.parametrize("words", VERBS.values(), ids=VERBS)
def test_a_file_of_somebody_else_stays(words, files, tmp_path):
    file = tmp_path / "theirs"
    file.write_bytes(WORDS)
    code, out, err = metalora_command(*words.replace("{}", str(files)).replace("OUT", str(file)).split())
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"metalora: {file}: exists already; --overwrite replaces it")
    assert file.read_bytes() == WORDS and list(tmp_path.iterdir()) == [file]


def test_overwrite_writes_what_a_new_file_gets(files, tmp_path):
    words = f"merge {files}/adapter.safetensors {RESNET} --out".replace("{}", str(files)).split()
    assert metalora_command(*words, tmp_path / "new")[0] == 0
    (tmp_path / "theirs").write_bytes(WORDS)
    assert metalora_command(*words, tmp_path / "theirs", "--overwrite")[0] == 0
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "new").read_bytes()


@pytest.mark.parametrize("name", ("resnet.safetensors", "adapter.safetensors"))
def test_the_base_and_the_adapter_are_never_written_on(name, files, tmp_path):
    before = (files / name).read_bytes()
    link = tmp_path / "link"
    link.symlink_to(files / name)
    words = f"merge {files}/adapter.safetensors {RESNET} --overwrite --out".replace("{}", str(files)).split()
    for out in (files / name, link):
        code, _, err = metalora_command(*words, out)
        assert code == 2 and "is read by this command" in err and (files / name).read_bytes() == before


def test_a_file_in_the_folder_of_a_base_is_not_replaced(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(WORDS)
    with pytest.raises(ValueError, match="is read by this command"):
        check_output(base / "model.safetensors", overwrite=True, inputs=[f"hf:{base}"])
    check_output(base / "new.safetensors", overwrite=False, inputs=[f"hf:{base}"])


def test_a_folder_is_never_replaced(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        check_output(tmp_path, overwrite=True)


@pytest.mark.parametrize("content", [WORDS, b"a,b\n1,2\n", b'{\n "a": 1\n}\n', b'{"a": 1}\n', b"\x89PNG\n"], ids=repr)
def test_rows_are_not_added_to_a_file_of_another_kind(content, tmp_path):
    file = tmp_path / "theirs"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not a file of rows"):
        RowStore(file).append({"key": "a"})
    code, out, err = metalora_command("bench", "--out", file)
    assert (code, out, err.count("\n")) == (2, "", 1) and file.read_bytes() == content


@pytest.mark.filterwarnings("ignore:.*cut off")
@pytest.mark.parametrize("content", [b"", b"\n", b'{"key": "b"}\n', b'{"key": "b", "resu'], ids=repr)
def test_rows_are_added_to_rows_and_to_what_remains_of_them(content, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(content)
    RowStore(tmp_path / "rows.jsonl").append({"key": "a"})
    lines = (tmp_path / "rows.jsonl").read_bytes()
    assert lines.startswith(content) and lines.endswith(b'{"key": "a"}\n')
