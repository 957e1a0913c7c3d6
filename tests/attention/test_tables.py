import pytest
from rich.console import Console

from segscse.attention import BLOCKS
from segscse.attention.measure import BlockRow, Cost, CostTable, MapSetting
from segscse.attention.papers import SOURCES
from segscse.attention.tables import check_format, footnotes, markdown, text_table, write_table
from segscse.errors import InputError
from segscse.files import read_json


def row(name, cost=None, skipped="", aliases=()):
    return BlockRow(name, name, aliases, SOURCES[name], BLOCKS[name].kind == "conv", cost, skipped)


def table_of(*rows):
    return CostTable(MapSetting(), "cpu", "bf16", 2, {"torch": "2.13"}, 1.25, rows)


COST = Cost(1234, 2.5, 2.0, 7.499, 5.9992, 3 * 2**19)
TABLE = table_of(
    row("cbam_channel", COST, aliases=("ENCAM", "ChannelAttentionModule")),
    row("depth_conv_gate", COST),
    row("danet_pam", skipped="too large"),
)


def test_markdown_has_titles_links_numbers_aliases_and_remarks():
    lines = markdown(TABLE).splitlines()
    numbers = "1,234 | 2.50 | 2.00 | 7.50 | 6.00 | 1.50"
    cbam = "Woo et al., [CBAM: Convolutional Block Attention Module](https://arxiv.org/abs/1807.06521)"
    others = "`ENCAM` (reduction 8, bias False), `ChannelAttentionModule`"
    assert lines[0].startswith("| block | paper | parameters | infer ms | x copy | train ms | x copy | kept MiB |")
    assert lines[2] == f"| `cbam_channel` | {cbam} | {numbers} | {others} | its channel gate alone |"
    assert lines[3] == f"| `depth_conv_gate` | - | {numbers} |  | no paper; the code known as eca_layer3d |"
    assert lines[4].endswith("| - | - | - | - | - | - |  | its position attention; not measured: too large |")
    assert {line.count("|") for line in lines[:5]} == {11}
    assert lines[5] == ""
    assert "2 x 32 x 40 x 56 x 40" in lines[6]
    assert "bf16, cpu, 2 threads, torch 2.13, median of 10" in lines[6]
    assert "reading and writing the map once, 1.25 ms" in lines[6]


def test_the_text_fits_into_80_columns_with_one_line_a_block(capsys):
    large = Cost(1_234_567, 9999.99, 999.99, 99999.99, 9999.99, 9999 * 2**20)
    Console(width=80).print(text_table(table_of(*(row(name, large) for name in BLOCKS))))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["block", *BLOCKS]
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["cse", "1709.01507", "1,234,567", "9999.99", "999.99", "99999.99", "9999.99", "9999.00"]


def test_the_footnotes_say_what_numbers_do_not():
    notes = footnotes(
        table_of(row("cse", COST), row("slice_se", COST), row("sk", COST), row("danet_pam", skipped="big"))
    )
    assert notes[0].startswith("Map 2 x 32 x 40 x 56 x 40")
    assert notes[1:4] == [
        "slice_se: with the mean taken per slice, which the paper does not have",
        "sk: takes a convolution's place: time and memory are the block's own, not added ones",
        "danet_pam: its position attention; not measured: big",
    ]
    assert [note[:10] for note in notes[4:]] == ["1709.01507", "1903.06586", "1809.02983"]
    assert notes[4] == "1709.01507: Hu et al., Squeeze-and-Excitation Networks"


def test_json_holds_every_number_unrounded(tmp_path):
    write_table(tmp_path / "table.json", TABLE)
    saved = read_json(tmp_path / "table.json")
    assert saved["copy_ms"] == 1.25
    assert saved["setting"]["size"] == [40, 56, 40]
    assert saved["rows"][0]["cost"]["training_ratio"] == 5.9992
    assert saved["rows"][0]["source"]["paper"]["arxiv"] == "1807.06521"
    assert (saved["rows"][2]["cost"], saved["rows"][2]["skipped"]) == (None, "too large")


def test_markdown_is_written_by_its_suffix(tmp_path):
    write_table(tmp_path / "table.md", TABLE)
    assert (tmp_path / "table.md").read_text() == markdown(TABLE)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--out must end in .md or .json, got 'table.csv'"):
        check_format(tmp_path / "table.csv")
