"""Do the tests notice a mistake? Each of these is seeded by itself, and some test must fail.

    python -m tests.long.mutants [--only NAME] [--list]

It works in a copy of the files that git tracks, and takes some minutes. Exit code 1 where a mutant survives,
or no longer fits the code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600  # of one run of pytest


class Mutant(NamedTuple):
    """A mistake: `old`, which stands once in the file `path`, becomes `new`, and `tests` must fail."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]  # what pytest takes: files, or single tests of them


SCHEDULER, HOLDINGS = "jbatch/host/scheduler.py", "jbatch/host/holdings.py"
ADMISSION, GROWTH = "jbatch/host/admission.py", "jbatch/host/growth.py"
DECODE, PREFILL = "jbatch/host/decode.py", "jbatch/host/prefill.py"
PAGES = "jbatch/host/pages.py"
SAMPLING, DRAWS = "jbatch/device/sampling.py", "jbatch/device/draws.py"
SPANS, STEP = "jbatch/device/spans.py", "jbatch/device/step.py"

MUTANTS = (
    Mutant("a second engine is let in", "jbatch/seam/tenancy.py",
           "if other is not None and other.num_unfinished:",
           "if other is not None and other.num_unfinished < 0:",
           ("tests/jbatch/seam/test_tenancy.py::test_a_second_engine_is_refused_and_the_first_goes_on",)),
    Mutant("a second step goes in", "jbatch/engine/turn.py",
           "elif inside.name == STEP or inside.thread == call.thread:\n                return False",
           "elif inside.name == STEP or inside.thread == call.thread:\n                return True",
           ("tests/jbatch/engine/test_turn.py::test_a_second_step_is_refused_and_the_first_goes_on",)),
    Mutant("what was asked for during a step is forgotten", "jbatch/engine/engine.py",
           "            self._notes.leave(New(next(self._serials), request, key))\n        self.tidy()",
           "            self._notes.leave(New(next(self._serials), request, key))\n"
           "        self.tidy() or self._notes._notes.pop()",
           ("tests/jbatch/engine/test_turn.py::"
            "test_what_another_thread_asks_for_during_a_step_is_done_before_the_next",)),
    Mutant("what runs goes on over pages of older weights", "jbatch/engine/pipeline.py",
           "            self.scheduler.retract()\n",
           "",
           ("tests/jbatch/engine/test_update.py::test_what_runs_is_prefilled_again_by_the_new_weights",)),
    Mutant("weights are in a trainer's memory", "weights/in_memory.py",
           "may_alias=False",
           "may_alias=True",
           ("tests/weights/test_in_memory.py::test_parameters_have_memory_of_their_own",)),
    Mutant("noise depends on a setting of JAX", SAMPLING,
           "jax.random.wrap_key_data(jnp.stack([jnp.uint32(0), bits]), impl=\"threefry2x32\")",
           "jax.random.key(bits)",
           ("tests/jbatch/device/test_settings.py::test_a_step_is_traced_alike",)),
    Mutant("a page comes one token late", DECODE,
           "num_cached > len(sequence.pages) * page_size",
           "num_cached > len(sequence.pages) * page_size + 1",
           ("tests/jbatch/host/test_scheduler.py::test_the_first_two_plans_and_their_accounts",)),
    Mutant("the oldest is preempted", GROWTH,
           "younger = running[running.index(sequence) + 1 :]",
           "younger = running[:1]",
           ("tests/jbatch/host/test_growth.py::test_the_youngest_is_preempted_and_computed_again",)),
    Mutant("the policy does not say who gives up pages", GROWTH,
           "max(reversed(younger), key=lambda sequence: sequence.key)",
           "younger[-1]",
           ("tests/jbatch/host/test_growth.py::test_the_policy_says_who_gives_up_pages",)),
    Mutant("pages are not given back", HOLDINGS,
           "        self.pool.free(reversed(sequence.pages))\n",
           "",
           ("tests/jbatch/host/test_lifecycle.py::test_abort_gives_all_back_at_once_in_any_state",)),
    Mutant("who was preempted does not wait for a token in flight", ADMISSION,
           "if sequence.num_planned > sequence.num_known:  # its tokens are in flight",
           "if sequence.num_planned < 0:",
           ("tests/jbatch/host/test_growth.py::"
            "test_a_preempted_sequence_joins_again_only_once_its_tokens_have_landed",)),
    Mutant("admission forgets the page of the first token", ADMISSION,
           "self._pool.pages_for(sequence.next_len) - shared",
           "self._pool.pages_for(sequence.num_known) - shared",
           ("tests/jbatch/host/test_admission.py::test_admission_leaves_pages_for_those_admitted_before",)),
    Mutant("a step is planned after the last token", DECODE,
           "ended = left <= 0 or",
           "ended = left < 0 or",
           ("tests/jbatch/host/test_scheduler.py::test_plans",)),

    Mutant("full pages count for one more", PAGES,
           "-(-num_tokens // self.page_size)",
           "num_tokens // self.page_size + 1",
           ("tests/jbatch/host/test_pages.py",)),
    Mutant("the null page is handed out", PAGES,
           "range(NULL_PAGE + 1, num_pages)",
           "range(NULL_PAGE, num_pages)",
           ("tests/jbatch/host/test_pages.py",)),
    Mutant("the last free page is never taken", PAGES,
           "return num_pages <= len(self._free)",
           "return num_pages < len(self._free)",
           ("tests/jbatch/host/test_pages.py",)),
    Mutant("a shared page is free once its first owner leaves", PAGES,
           "            if count == 1:\n                free[page_id] = None",
           "            free[page_id] = None",
           ("tests/jbatch/host/test_pages.py",)),
    Mutant("a page that is handed out is still found", PAGES,
           "            self.prefixes.drop(page_id)\n",
           "",
           ("tests/jbatch/host/test_pages.py",)),
    Mutant("a page that another took meanwhile is published", HOLDINGS,
           "elif self._is_as_left(left := sequence.left_pages[idx]):",
           "elif left := sequence.left_pages[idx]:",
           ("tests/jbatch/host/test_prefix.py",)),
    Mutant("a prompt's last token is found, too", HOLDINGS,
           "min(sequence.num_known - 1, sequence.request.num_readable)",
           "min(sequence.num_known, sequence.request.num_readable)",
           ("tests/jbatch/host/test_prefix.py",)),
    Mutant("a chunk ends within a page", PREFILL,
           "                end -= end % self._page_size\n",
           "",
           ("tests/jbatch/host/test_prefill.py::test_a_prompt_that_does_not_fit_goes_on_in_the_next_step",)),
    Mutant("pages that another engine wrote to are found", "jbatch/engine/pipeline.py",
           "        self._follow_changes(version)\n",
           "",
           ("tests/jbatch/engine/test_prefix_cache.py::test_pages_that_another_engine_wrote_to_are_not_found",)),
    Mutant("a sample writes to what others read", HOLDINGS,
           "        if self._must_copy(sequence):\n",
           "        if False:\n",
           ("tests/jbatch/host/test_holdings.py",)),
    Mutant("a page is copied from one that the same step makes", HOLDINGS,
           "PageCopy(copied.get(shared, shared), own)",
           "PageCopy(shared, own)",
           ("tests/jbatch/host/test_holdings.py",)),
    Mutant("a page that is copied may be taken at once", HOLDINGS,
           "            self.pool.share(copied)\n            self._kept += copied\n",
           "",
           ("tests/jbatch/host/test_holdings.py",)),
    Mutant("a sample begins on pages that its own step fills", "jbatch/host/family.py",
           "0 <= sample.prompt_step < step_idx",
           "0 <= sample.prompt_step <= step_idx",
           ("tests/jbatch/host/test_family.py",)),
    Mutant("who does not fit into a step never has a turn", "jbatch/host/turns.py",
           "places.get(pair[0].seq_id, len(places))",
           "pair[0].seq_id",
           ("tests/jbatch/host/test_turns.py",)),
    Mutant("what is prefilled takes the room of others", SCHEDULER,
           "self.pool.num_usable - self.pool.pages_for(self.max_seq_len)",
           "self.pool.num_usable",
           ("tests/jbatch/llm/test_kv.py::test_the_longest_sequence_keeps_its_room",)),
    Mutant("a score's first token comes from the cache", "jbatch/host/request.py",
           "max(0, self.first_scored - 1)",
           "self.first_scored",
           ("tests/jbatch/engine/test_scoring.py::test_what_is_not_asked_about_may_come_from_the_cache",)),
    Mutant("lines that begin alike are not neighbours", "jbatch/jobs/lookahead.py",
           "for block, branch in reversed(branches.items())",
           "for block, branch in branches.items()",
           ("tests/jbatch/jobs/test_lookahead.py::test_equal_beginnings_are_neighbours_and_the_first_line_is_first",)),
    Mutant("a page may be freed twice", PAGES,
           'raise RuntimeError(f"page {page_id} freed twice")',
           "continue",
           ("tests/jbatch/host/test_pages.py",)),

    Mutant("the noise depends on the slot", SAMPLING,
           "jax.vmap(row_noise)(seeds, sample_idxs, positions)",
           "jax.vmap(row_noise)(jnp.arange(seeds.shape[0]), sample_idxs, positions)",
           ("tests/jbatch/device/test_sampling.py::test_the_noise_depends_on_seed_sample_and_position_alone",)),
    Mutant("the noise is the same at every position", SAMPLING,
           "jax.random.fold_in(jax.random.fold_in(key, sample_idx), position)",
           "jax.random.fold_in(key, sample_idx)",
           ("tests/jbatch/device/test_sampling.py::test_different_seeds_samples_and_positions_differ",)),
    Mutant("a threshold must be exceeded", SAMPLING,
           "(mass >= target[:, None])",
           "(mass > target[:, None])",
           ("tests/jbatch/device/test_sampling.py::test_four_tokens_by_hand",)),
    Mutant("top-p counts what top-k has dropped", SAMPLING,
           'rows["top_p"] * weights.sum(axis=-1)',
           'rows["top_p"] * jnp.exp(scaled - peak).sum(axis=-1)',
           ("tests/jbatch/device/test_sampling.py::test_four_tokens_by_hand",)),
    Mutant("min_tokens is ignored", "jbatch/device/process/stop_ids.py",
           '(rows["min_left"] > 0)[:, None]',
           '(rows["min_left"] < 0)[:, None]',
           ("tests/jbatch/device/test_sampling.py::test_stop_ids_are_banned_until_min_tokens",)),
    Mutant("greedy rows are drawn beside others", SAMPLING,
           'jnp.where(rows["temperature"] > 0, sampled, best)',
           'jnp.where(rows["temperature"] >= 0, sampled, best)',
           ("tests/jbatch/device/test_sampling.py::test_greedy_rows_in_a_mixed_batch",)),

    Mutant("finished rows go on", SPANS,
           'live = present & (state["finished"] == 0)',
           "live = present",
           ("tests/jbatch/device/test_step.py::test_a_finished_row_is_masked_in_the_very_next_step",)),
    Mutant("padding is written to the cache", SPANS,
           "jnp.where(part.live, pages, num_pages)",
           "pages",
           ("tests/jbatch/device/test_step.py::test_padding_changes_nothing",)),
    Mutant("every chunk begins at position 0", SPANS,
           "starts[owners] + offsets",
           "offsets",
           ("tests/jbatch/device/test_step.py::test_chunks_and_one_pass_agree",)),
    Mutant("a decoded token is one position early", SPANS,
           'positions = jnp.where(live, state["length"], 0)',
           'positions = jnp.where(live, state["length"] - 1, 0)',
           ("tests/jbatch/device/test_step.py::test_decode_writes_one_place_per_row_and_advances_it",)),
    Mutant("a new page is known one step late", STEP,
           "parts_of(rows, tables, fields, bucket)",
           "parts_of(rows, state.block_tables, fields, bucket)",
           ("tests/jbatch/device/test_step.py::test_table_updates_reach_the_device_with_the_step_that_needs_them",)),
    Mutant("logits that are not finite leave nothing to draw", DRAWS,
           "jnp.where(finite, status, Status.NON_FINITE)",
           "jnp.where(finite | (status == Status.NOTHING_LEFT), status, Status.NON_FINITE)",
           ("tests/jbatch/device/process/test_process.py::test_ends_that_only_processing_steps_know",)),

    Mutant("errors that are retried stay", "jbatch/jobs/resume.py",
           "raw for result, raw in read_raw(path) if not result.is_error",
           "raw for result, raw in read_raw(path)",
           ("tests/jbatch/jobs/test_resume.py::test_errors_are_dropped",)),
    Mutant("a torn result takes the end of the one before", "jbatch/jobs/output.py",
           "return begin + at + 1",
           "return begin + at",
           ("tests/jbatch/jobs/test_output.py",)),
    Mutant("a file has its name before it is on the disk", "jbatch/jobs/files.py",
           "            os.fsync(file.fileno())\n        check()\n        os.replace(temporary, path)",
           "            os.replace(temporary, path)\n            os.fsync(file.fileno())\n        check()",
           ("tests/jbatch/jobs/test_resume.py::test_a_kill_while_the_output_is_sorted",)),
    Mutant("results go where the end was, over what others wrote", "jbatch/jobs/output.py",
           "os.O_CREAT | os.O_APPEND |",
           "os.O_CREAT |",
           ("tests/jbatch/jobs/test_output.py",)),
    Mutant("an output that others changed is written to", "jbatch/jobs/output.py",
           "        self._check_size(self._end)\n        rest =",
           "        rest =",
           ("tests/jbatch/jobs/test_output.py",)),
    Mutant("a user's own file is taken for a lock", "jbatch/jobs/lock.py",
           "if not HOLDER.fullmatch(holder):",
           "if not HOLDER.match(holder):",
           ("tests/jbatch/jobs/test_lock.py",)),
    Mutant("the end of large weights is not looked at", "jbatch/jobs/state.py",
           "number // (NUM_SAMPLES - 1)",
           "number // NUM_SAMPLES",
           ("tests/jbatch/jobs/test_state.py",)),
    Mutant("the last of the alternatives is left out", "jbatch/jobs/logprob_forms.py",
           "logprob.rank <= (params.logprobs or 0)",
           "logprob.rank < (params.logprobs or 0)",
           ("tests/jbatch/jobs/test_results.py",)),
    Mutant("one custom_id may appear twice", "jbatch/jobs/input.py",
           "    if num_twice:",
           "    if num_twice > 1:",
           ("tests/jbatch/jobs/test_input.py::test_duplicates_are_named_with_both_lines",)),
    Mutant("defaults win over a line", "jbatch/jobs/request_line.py",
           "{**defaults, **given}",
           "{**given, **defaults}",
           ("tests/jbatch/jobs/test_request_line.py::test_a_line_overrides_the_defaults_and_null_does_not",)),
)  # fmt: skip


def misfits(mutants: Iterable[Mutant]) -> list[str]:
    """Which do not fit the code, and why."""
    counts = {mutant.name: (ROOT / mutant.path).read_text().count(mutant.old) for mutant in mutants}
    return [f"{name}: its snippet occurs {count} times" for name, count in counts.items() if count != 1]


def copy_checkout(target: Path) -> None:
    """The tracked files, as they are in the checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)


def run_tests(checkout: Path, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Run some tests of a copy, all of whose processes import the copy.

    Without bytecode files: they go by time and size, in which a mutant may be the same. pytest's cache stays,
    for it holds compiled programs.
    """
    env = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    args = [sys.executable, "-m", "pytest", "-x", "-q", *tests]
    return subprocess.run(args, cwd=checkout, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)


def verdict(checkout: Path, mutant: Mutant) -> str:
    """What becomes of a mutant."""
    path = checkout / mutant.path
    original = path.read_text()
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        code = run_tests(checkout, mutant.tests).returncode
    finally:
        path.write_text(original)
    return {0: "SURVIVED", 1: "killed"}.get(code, f"NO RESULT: pytest ended with {code}")


def check(mutants: Sequence[Mutant]) -> bool:
    """Whether the tests pass without a mutant, and fail with each."""
    if problems := misfits(mutants):
        print("\n".join(problems))
        return False
    num_killed = 0
    with tempfile.TemporaryDirectory() as directory:
        checkout, begin = Path(directory), time.monotonic()
        copy_checkout(checkout)
        unchanged = run_tests(checkout, dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        if unchanged.returncode:
            print(f"{unchanged.stdout}{unchanged.stderr}the tests fail without a mutant")
            return False
        print(f"{time.monotonic() - begin:6.1f} s  without a mutant the tests pass", flush=True)
        for mutant in mutants:
            begin = time.monotonic()
            found = verdict(checkout, mutant)
            num_killed += found == "killed"
            print(f"{time.monotonic() - begin:6.1f} s  {mutant.path}: {mutant.name}: {found}", flush=True)
    print(f"{num_killed} of {len(mutants)} killed")
    return num_killed == len(mutants)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.long.mutants")
    parser.add_argument("--only", metavar="NAME", choices=[mutant.name for mutant in MUTANTS])
    parser.add_argument("--list", action="store_true", help="name all, and run nothing")
    args = parser.parse_args()
    if args.list:
        for mutant in MUTANTS:
            print(f"{mutant.path}: {mutant.name}: {' '.join(mutant.tests)}")
        return
    sys.exit(not check([mutant for mutant in MUTANTS if args.only in (None, mutant.name)]))


if __name__ == "__main__":
    main()
