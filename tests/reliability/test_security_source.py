"""What the package's source may not contain: ways from data to code. Read from the syntax tree, not from the text."""

import ast
from pathlib import Path

import pytest

import segscse

PACKAGE = Path(segscse.__file__).parent
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "input"),
    *("os.system", "os.popen", "os.execv", "os.spawnl", "subprocess.call", "subprocess.getoutput"),
    *("pickle.load", "pickle.loads", "dill.load", "joblib.load", "shelve.open", "marshal.loads", "torch.hub.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.jit.load", "torch.package"),
    *("shutil.unpack_archive", "logging.config.fileConfig", "pydoc.locate", "runpy.run_path", "tempfile.mktemp"),
    *("load_from_checkpoint", "extractall"),
}
DYNAMIC = {"__init__.py": "import_module", "inference/engines.py": "importlib.import_module"}
"""Modules that import by a name, which each takes from a table of its own."""


def _calls():
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file.relative_to(PACKAGE).as_posix(), ast.unparse(node.func), node


def _found(source):
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}


def _bad(name):
    return name in FORBIDDEN or name.rpartition(".")[2] in {"load_from_checkpoint", "extractall", "unsafe_load"}


def test_nothing_leads_from_data_to_code():
    assert [f"{file}:{node.lineno} {name}" for file, name, node in _calls() if _bad(name)] == []


@pytest.mark.parametrize("source", ["eval(x)", "yaml.load(x)", "SegModule.load_from_checkpoint(x)", "tar.extractall()"])
def test_the_scan_finds_what_it_looks_for(source):
    assert any(_bad(name) for name in _found(source))


def test_imports_by_name_are_where_the_names_are_our_own():
    assert {file: name for file, name, _ in _calls() if name.endswith("import_module")} == DYNAMIC


def test_loaders_with_a_safe_mode_are_called_in_it():
    needed = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False", "np.fromfile": "allow_pickle=False"}
    loads = [(file, name, node) for file, name, node in _calls() if name in needed]
    assert loads
    for file, name, node in loads:
        assert needed[name] in [ast.unparse(keyword) for keyword in node.keywords], (file, node.lineno)


def test_no_command_goes_through_a_shell():
    for file, _, node in _calls():
        shell = [ast.unparse(keyword) for keyword in node.keywords if keyword.arg == "shell"]
        assert shell in ([], ["shell=False"]), (file, node.lineno)


def test_lightning_resumes_with_weights_only():
    fits = [node for file, name, node in _calls() if name == "trainer.fit" and file.startswith("training/")]
    assert fits
    assert all("weights_only=True" in [ast.unparse(keyword) for keyword in node.keywords] for node in fits)


def test_archives_are_unpacked_member_by_member_with_the_filter_for_data():
    extracts = [(file, node) for file, name, node in _calls() if name.endswith(".extract")]
    assert [file for file, _ in extracts] == ["data/fetch.py"]
    assert "filter='data'" in [ast.unparse(keyword) for keyword in extracts[0][1].keywords]
