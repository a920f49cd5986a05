"""`python -m jbatch.lm_eval`; importing it makes `--model jbatch` known to the lm-evaluation-harness."""

from jbatch.integrations.lm_eval import JBatchLM, main

__all__ = ["JBatchLM", "main"]

if __name__ == "__main__":
    main()
