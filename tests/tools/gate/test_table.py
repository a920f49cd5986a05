import pytest

from tools.gate import table as gate_table


def row(**changes):
    names = {"kernel": "paged_decode", "implementation": "mosaic", "shape": "llama3-8b", "page_size": 16}
    sizes = {"registers": 96, "spill_bytes": 0, "smem_bytes": 105600, "ctas_per_core": 2}
    rest = {"jax": "0.11.2", "status": "ok", "reason": None, "pool_bytes": 2**30}
    return names | sizes | rest | changes


def lines(rows):
    table = gate_table.markdown({"h200": rows}).split("### H200")[1]
    return [line for line in table.splitlines() if line.startswith("| `")]


def test_shapes_that_differ_in_registers_alone_are_one_line():
    rows = [row(shape=shape, page_size=size) for shape in ("llama3-8b", "llama3-70b") for size in (16, 64)]
    rows += [row(shape="llama2-7b", page_size=size, registers=99) for size in (16, 64)]
    rows += [row(shape="llama3.2-1b", page_size=size, ctas_per_core=4) for size in (16, 64)]
    names = "llama3-8b, llama3-70b, llama2-7b"
    assert lines(rows) == [
        f"| `paged_decode` | mosaic | 0.11.2 | {names} | 16, 64 | 96-99 | 0 | 103.1 KB | 2 |",
        "| `paged_decode` | mosaic | 0.11.2 | llama3.2-1b | 16, 64 | 96 | 0 | 103.1 KB | 4 |",
    ]


def test_page_sizes_and_versions_are_not_claimed_for_shapes_that_lack_them():
    rows = [row(), row(page_size=64), row(shape="llama3-70b", page_size=64)]
    rows += [row(shape="llama2-7b", jax=version) for version in ("0.11.2", "0.10.2")]
    assert [[cell.strip() for cell in line.split("|")[3:6]] for line in lines(rows)] == [
        ["0.11.2", "llama3-8b", "16, 64"],
        ["0.11.2", "llama3-70b", "64"],
        ["0.10.2, 0.11.2", "llama2-7b", "16"],
    ]


def test_a_failure_says_so():
    (failed,) = lines([row(status="failed", reason="ValueError: x", registers=None, spill_bytes=None)])
    assert "failed: ValueError: x" in failed


def test_what_is_not_claimed_is_a_note_and_no_line():
    declined = row(status="not_claimed", reason="Hopper only")
    assert lines([declined]) == []
    remarked = row(remarks=["Loss: serialized in the function 'f' in line 7"])
    assert gate_table.notes([declined, declined | {"page_size": 64}, remarked]) == [
        "not claimed: mosaic paged_decode: Hopper only (2 cases)",
        "remark: mosaic paged_decode: Loss: serialized (1 cases)",
    ]


def test_every_kernel_has_a_floor():
    from tools.gate.kernel_case import KERNELS

    assert set(gate_table.FLOORS) == {kernel for kernels in KERNELS.values() for kernel in kernels}


def test_the_table_is_written_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gate_table.BEGIN}old\n{gate_table.END}\nafter\n")
    for table in ("new\n", "newer\n"):
        gate_table.write_readme(table, readme)
    text = readme.read_text()
    assert text == f"before\n{gate_table.BEGIN}\nnewer\n\n{gate_table.END}\nafter\n"
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="gate table"):
        gate_table.write_readme("new\n", readme)


def test_columns_are_aligned():
    assert gate_table.text_table([("a", "bcd"), ("efg", None)]) == "  a  bcd\nefg"


def test_the_readme_has_every_kernel_for_every_target():
    """Or it was not made again when one was added."""
    made = gate_table.README.read_text().split(gate_table.BEGIN)[1].split(gate_table.END)[0]
    _, *targets = made.split("\n### ")
    assert len(targets) == len(gate_table.TARGETS)
    for target in targets:
        kernels = {line.split("`")[1] for line in target.splitlines() if line.startswith("| `")}
        assert kernels == set(gate_table.FLOORS)
