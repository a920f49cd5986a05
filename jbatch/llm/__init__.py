"""The front door: a model directory in, texts out."""

from jbatch.llm.llm import LLM as LLM
