"""`jbatch generate MODEL -i DIR -o DIR --ray`: files of requests, answered by the replicas of a cluster.

Every file is a job as it is without Ray: the same files, checks, results and resume. Here its lines go to
other processes, and come back as results; this process alone reads and writes.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.config import check_range
from jbatch.errors import ConfigError, JobError
from jbatch.integrations.ray_data.cluster import RayCluster, connected
from jbatch.integrations.ray_data.config import gpus_of
from jbatch.integrations.ray_data.fleet import Fleet
from jbatch.integrations.ray_data.replica import Answered, Loaded, Routed
from jbatch.jobs.command import JobModel, Needs, job_model
from jbatch.jobs.lookahead import in_groups
from jbatch.jobs.open_job import JobStopped, OfModel, OpenJob, open_job
from jbatch.jobs.options import JobOptions
from jbatch.jobs.report import Say, write_summary
from jbatch.jobs.run import ALL_ANSWERED, SOME_ERRORS, STOPPED
from jbatch.jobs.signals import StopSignals, exit_at_once
from jbatch.jobs.summary import JobSummary, describe, what_is_there
from jbatch.progress import progress_bar
from jbatch.text.chat_options import read_chat_template

NOT_WITH_RAY = ("metrics_file", "trace")  # of one engine
MAX_REPLICAS = 2**16


class Files(NamedTuple):
    """One job's."""

    input_file: str
    output_file: str


def run_ray(
    model: Path,
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
    job_options: dict[str, Any],
    say: Say,
    chat_template: str | None = None,
    replicas: int | None = None,
) -> int:
    """The exit code of `jbatch generate --ray`, as that of `run_generate`.

    Args:
      replicas: engines; by default one for each GPU of the cluster, or a single one where it has none.

    Raises what `run_generate` raises.
    """
    for name in NOT_WITH_RAY:
        if job_options.get(name) is not None:
            raise ConfigError(name, job_options[name], "is of one engine: not with --ray")
    if replicas is not None:
        check_range("replicas", replicas, 1, MAX_REPLICAS)
    pairs = files_of(job_options.get("input_file"), job_options.get("output_file"))
    options = [JobOptions(**{**job_options, **pair._asdict()}) for pair in pairs]
    template = (
        None if chat_template is None else read_chat_template(chat_template)
    )  # other nodes lack the file
    checked = job_model(Path(os.path.abspath(model)), engine_options, sampling_options, template)
    summary = JobSummary(checked.model_defaults)
    os.makedirs(str(job_options["output_file"]), exist_ok=True)
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals(say, exit_at_once))
        jobs = [open_job(checked.command(each, say), stack, summary) for each in options]
        run = _Run(checked, jobs, summary, stop, say)
        try:
            return run.finish(replicas)
        except JobStopped as error:
            say(str(error))
            return STOPPED


def files_of(inputs: str | None, output_dir: str | None) -> list[Files]:
    """An output in `output_dir` for each file of a folder, for each that fits a pattern, or for one; named as
    its input.

    Raises:
      ConfigError: where there are none, or two of one name; and where the output is no folder.
    """
    if not inputs or not output_dir:
        missing = "output_file" if inputs else "input_file"
        raise ConfigError(missing, None, "a job needs both -i and -o")
    if os.path.exists(output_dir) and not os.path.isdir(output_dir):
        raise ConfigError(
            "output_file", output_dir, "must be a folder with --ray: it gets a file for each input"
        )
    pattern = os.path.join(glob.escape(inputs), "*.jsonl") if os.path.isdir(inputs) else inputs
    found = [inputs] if os.path.isfile(inputs) else sorted(filter(os.path.isfile, glob.glob(pattern)))
    if not found:
        raise ConfigError(
            "input_file", inputs, "must be a file, a folder with files *.jsonl, or a pattern of files"
        )
    names = [os.path.basename(path) for path in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("input_file", inputs, f"two files are called {name}")
    return [Files(path, os.path.join(output_dir, name)) for path, name in zip(found, names, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Run:
    """Jobs whose files are open."""

    model: JobModel
    jobs: Sequence[OpenJob]
    summary: JobSummary  # of all of them
    stop: StopSignals
    say: Say

    def finish(self, replicas: int | None) -> int:
        """Answer what is left, say what was done, and sort; the exit code. Raises JobStopped."""
        job = self.jobs[0]
        try:
            for job in self.jobs:
                if job.is_wrong and not job.is_done:
                    job.refuse_all()
            left = {idx: job for idx, job in enumerate(self.jobs) if not job.is_done}
            if not left:
                self.say("nothing is left to do")
            elif not self._answer(left, replicas):
                return self.stop.exit_code
            for job in self.jobs:
                job.sort()
        except (JobError, OSError) as error:
            raise job.stopped_by(error) from error
        return SOME_ERRORS if any(job.ledger.done.num_errors for job in self.jobs) else ALL_ANSWERED

    def _answer(self, left: dict[int, OpenJob], replicas: int | None) -> bool:
        """Let replicas answer, and say what was done, also where that fails; whether it came to its end."""
        samplers = {sampler for job in left.values() for sampler in job.scan.samplers}
        needs = Needs(sum(job.scan.num_samples for job in left.values()), tuple(sorted(samplers)))
        begin = time.monotonic()
        with connected() as ray:
            size = size_of(ray.cluster_resources(), self.model.llm_options, replicas)
            self.say(f"{size.replicas} replicas, " + (f"{size.gpus} GPUs each" if size.gpus else "on CPUs"))
            cluster = RayCluster(self.model, needs, size.gpus)
            num_left = sum(job.scan.num_requests - job.ledger.done.num_done for job in left.values())
            fleet = Fleet(cluster, size.replicas, num_left, self.say)
            try:
                return self._run(fleet, left)
            finally:
                self._report(fleet, time.monotonic() - begin)

    def _run(self, fleet: Fleet, left: dict[int, OpenJob]) -> bool:
        written = set[int]()
        total = sum(job.scan.num_requests for job in self.jobs)

        checked = list[OfModel]()

        def on_loaded(loaded: Loaded) -> None:
            if loaded.of_model not in checked:
                for job in left.values():
                    job.check_model(loaded.of_model)
                checked.append(loaded.of_model)

        with progress_bar("generating", total, "requests") as update:

            def on_answers(answers: Sequence[Answered]) -> None:
                for answered in answers:
                    left[answered.job_idx].ledger.write(answered.result)
                    written.add(answered.job_idx)
                for idx in written:
                    left[idx].ledger.output.sync()
                update(sum(job.ledger.done.num_done for job in self.jobs))

            self.stop.graceful = True
            try:
                complete = fleet.run(self._lines(left), self.stop.stopped, on_loaded, on_answers)
                for job in left.values():
                    job.check_written()
            finally:
                self.stop.graceful = False
        return complete

    def _lines(self, left: dict[int, OpenJob]) -> Iterator[Routed]:
        """The lines that are left, file by file, as they go to the engines."""
        caching = self.model.llm_options.get("enable_prefix_caching", True)
        for idx, job in left.items():
            for line in in_groups(job.lines_left(), job.command.options.lookahead if caching else 1):
                yield Routed(idx, line)

    def _report(self, fleet: Fleet, seconds: float) -> None:
        """Say what all replicas did, and write it down where that is asked for."""
        figures = self.summary.figures(fleet.summary, seconds, fleet.compilations)
        for line in describe(figures):
            self.say(line)
        path = self.jobs[0].command.options.summary_path
        if path is not None:
            done = [job.ledger.done for job in self.jobs]
            there = what_is_there(sum(of.num_done for of in done), sum(of.num_errors for of in done))
            write_summary(path, figures | there)


class Size(NamedTuple):
    """How many replicas there are, and the GPUs of each."""

    replicas: int
    gpus: int


def size_of(resources: Mapping[str, float], llm_options: Mapping[str, Any], replicas: int | None) -> Size:
    """What a cluster has room for. Raises ConfigError where that is less than was asked for."""
    cluster_gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    device = llm_options.get("device", "auto")
    if device == "cuda" and not cluster_gpus:
        raise ConfigError("device", device, "the cluster has no GPU")
    if device == "cpu" or not cluster_gpus:
        if (replicas or 1) > cpus:
            raise ConfigError("replicas", replicas, f"the cluster has {cpus} CPUs")
        return Size(replicas or 1, 0)
    gpus = gpus_of(llm_options)
    most = cluster_gpus // gpus
    if (replicas or 1) > most:
        raise ConfigError("replicas", replicas, f"each takes {gpus} GPUs, and the cluster has {cluster_gpus}")
    return Size(replicas or most, gpus)
