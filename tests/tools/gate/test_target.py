from pathlib import Path

from bench.gpu_suite import archive
from tools.gate import target


def test_tuned_choices_are_looked_for_where_the_archive_puts_them(tmp_path):
    assert len(target.xla_flags(tmp_path)) == 2
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "cache" / archive.TUNED).mkdir(parents=True)
    (work / "cache" / archive.TUNED / "fusion").write_text("chosen")
    out.mkdir()
    archive.pack(work, out)
    archive.unpack(out / archive.NAME, tmp_path / "tuned")
    name, _, folder = target.xla_flags(tmp_path / "dump", tmp_path / "tuned")[-1].partition("=")
    assert name == "--xla_gpu_per_fusion_autotune_cache_dir"
    assert (Path(folder) / "fusion").read_text() == "chosen"
