"""What is kept of XLA's dump of a program."""

from bench.gpu_suite import dumps

LAUNCHES = "0: kCommandBuffer\n  0: kKernel\n1: kWhile\n    0: kCommandBuffer\n"


def test_graphs_are_counted_and_the_device_is_kept(tmp_path):
    dump, work = tmp_path / "dump", tmp_path / "work"
    dump.mkdir()
    work.mkdir()
    (dump / "module_1.jit_step.thunk_sequence.txt").write_text("0: kKernel\n")
    (dump / "module_1.jit_step.thunk_sequence_after_thunk_passes.txt").write_text(LAUNCHES)
    (dump / "module_1.gpu_target_config.pbtxt").write_text("an H200")
    assert dumps.keep(dump, work, "step") == 2
    assert (work / "launches" / "step.txt").read_text() == LAUNCHES
    assert (work / "target.txtpb").read_text() == "an H200"
    assert not dump.exists()


def test_where_xla_says_nothing_there_is_no_number(tmp_path):
    assert dumps.keep(tmp_path / "none", tmp_path, "step") is None
