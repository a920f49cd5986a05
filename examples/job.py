"""A file of requests from Python: python examples/job.py. On a command line it is `jbatch generate -i -o`.

A job that is stopped goes on with the same call: what is in the output is not computed again.
"""

import json
import tempfile
from pathlib import Path

from jbatch.cli.main import main as jbatch

MODEL = Path(__file__).parent.parent / "weights" / "demo"
LINES = [
    {"custom_id": "sum", "prompt": "12+345=", "temperature": 0},
    {"custom_id": "typo", "prompt": "12+345=", "temperatur": 0},
    {"custom_id": "sorted", "prompt": "sort 83120=", "temperature": 0},
]


def main(model=MODEL):
    """Print each result's id, and its text or what is wrong with its line."""
    with tempfile.TemporaryDirectory() as folder:
        requests, results = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        requests.write_text("".join(json.dumps(line) + "\n" for line in LINES))
        files = ["-i", str(requests), "-o", str(results), "--ordered"]
        sizes = ["--max-num-seqs", "4", "--page-size", "16", "--max-num-batched-tokens", "64"]
        try:
            jbatch(["generate", str(model), "--device", "cpu", *files, *sizes])
        except SystemExit as ended:
            print("exit code", ended.code)
        for line in results.read_text().splitlines():
            result = json.loads(line)
            print(result["custom_id"], result.get("text") or result["error"]["message"])


if __name__ == "__main__":
    main()
