"""Every file that the package writes goes through `segscse.files`: the source is searched for writes that do not."""

import ast
from pathlib import Path

import pytest

import segscse

ROOT = Path(segscse.__file__).parent
# Calls that write a file, by the last part of their name.
WRITERS = {
    *("save", "savez", "savez_compressed", "savetxt", "save_file", "save_model", "save_checkpoint", "to_filename"),
    *("write_text", "write_bytes", "to_csv", "to_json", "to_excel", "to_parquet", "to_feather", "to_hdf", "to_pickle"),
    *("savefig", "WriteImage", "imwrite", "imsave", "dump", "tofile", "memmap", "save_as", "dcmwrite", "export"),
    *("copyfile", "copy2", "copytree", "move", "rename", "replace_file", "symlink_to", "hardlink_to", "extract"),
    *("extractall", "serialize", "serialize_to_file", "touch", "NamedTemporaryFile", "mkstemp"),
}
OPENERS = {"open", "fdopen", "GzipFile", "ZipFile", "TarFile"}
OS_WRITERS = {("os", "replace"), ("os", "link"), ("os", "symlink"), ("shutil", "copy"), ("shutil", "move")}
ATOMIC = {"atomic_path", "atomic_folder"}
# Writes that look like others and are none, or that have a reason: file, function, call.
ALLOWED = {
    ("evaluation/folders.py", "write_evaluation", "to_csv"): "without a path it returns the text",
    ("ablation.py", "_write", "to_csv"): "as above",
    ("evaluation/pictures.py", "jpeg_uri", "save"): "into a buffer",
    ("api.py", "_validate", "save"): "Segmentation.save, through write_labels",
    ("inference/pipeline.py", "write", "save"): "Segmentation.save, through write_labels",
    ("data/maps.py", "_gzip", "GzipFile"): "around the file that its caller opened within atomic_path",
    ("inference/convert.py", "to_onnx", "export"): "without a path it returns the graph",
    ("figures.py", "_repr_png_", "savefig"): "into a buffer",
    ("training/callbacks.py", "_save_checkpoint", "save_checkpoint"): "through WholeCheckpoints",
    ("training/checkpoints.py", "save_checkpoint", "save"): "into a buffer",
    ("inference/pipeline.py", "_map_of_bytes", "memmap"): "a scratch file with a temporary name, removed in the end",
    ("inference/export.py", "_openvino", "save_model"): "into the folder of the caller's atomic_folder",
}


def writes(source, file="x.py"):
    """Return (file, function, call, line) of every call that writes, but within a `with atomic_path(...)`."""
    found = []

    def visit(node, function, atomic):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function, atomic = node.name, False  # what a function within one does later is not covered
        if isinstance(node, ast.With | ast.AsyncWith):
            atomic = atomic or any(_last_name(item.context_expr) in ATOMIC for item in node.items)
        if isinstance(node, ast.Call) and not atomic and (name := _write(node)):
            found.append((file, function, name, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, function, atomic)

    visit(ast.parse(source), "", False)
    return found


def _last_name(node):
    function = node.func if isinstance(node, ast.Call) else node
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _write(call):
    name = _last_name(call)
    owner = call.func.value.id if isinstance(call.func, ast.Attribute) and hasattr(call.func.value, "id") else ""
    ours = isinstance(call.func, ast.Name) or owner == "self"
    ours = ours and name in ("write_text", "save", "save_model")
    if name in WRITERS and not ours and (call.args or call.keywords):
        return name
    if (owner, name) in OS_WRITERS:
        return f"{owner}.{name}"
    if name in OPENERS:
        modes = [
            node.value for node in (*call.args, *(k.value for k in call.keywords)) if isinstance(node, ast.Constant)
        ]
        if any(isinstance(mode, str) and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes):
            return name
    return ""


@pytest.mark.parametrize(
    "line",
    [
        "nib.save(image, path)",
        "torch.save(state, path)",
        "sitk.WriteImage(image, path)",
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='x')",
        "gzip.open(path, 'wb')",
        "path.write_text('a')",
        "table.to_csv(path)",
        "safetensors.torch.save_model(model, path)",
        "figure.savefig(path)",
        "os.replace(a, b)",
        "json.dump(value, stream)",
        "with open(path, 'w') as stream: pass",
        "with atomic_path(path) as t:\n    def later():\n        t.write_text('a')",
    ],
)
def test_the_search_finds(line):
    assert len(writes(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open('rb')",
        "gzip.open(path)",
        "write_text(path, 'a')",
        "text.replace('w', 'a')",
        "with atomic_path(path) as t:\n    nib.save(image, t)",
        "with files.atomic_path(path) as t, t.open('wb') as stream:\n    stream.write(b'')",
    ],
)
def test_the_search_passes(line):
    assert writes(line) == []


def test_nothing_is_written_but_through_files():
    found = [
        write
        for path in sorted(ROOT.rglob("*.py"))
        if (name := path.relative_to(ROOT).as_posix()) not in ("files.py", "data/fetch.py")
        for write in writes(path.read_text(encoding="utf-8"), name)
    ]
    assert [write for write in found if write[:3] not in ALLOWED] == []
    assert {write[:3] for write in found} == set(ALLOWED)  # none that is not needed any more


def test_the_downloader_alone_keeps_its_own_files_until_their_checksum_is_right():
    names = {write[2] for write in writes((ROOT / "data" / "fetch.py").read_text(), "data/fetch.py")}
    assert names == {"open", "os.replace", "extract"}  # NAME.tar.part appended to, verified, unpacked aside, renamed
