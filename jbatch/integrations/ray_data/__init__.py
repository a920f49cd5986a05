"""jbatch in Ray Data (the extra `ray`): the processors of `ray.data.llm`, on jbatch's engine.

from jbatch.integrations.ray_data import JBatchProcessorConfig, build_processor

processor = build_processor(JBatchProcessorConfig(model_source="DIR", concurrency=2), preprocess=...)
processor(ray.data.read_json("prompts.jsonl")).write_json("answers")
"""

from jbatch.integrations.ray_data.config import JBatchProcessorConfig
from jbatch.integrations.ray_data.processor import build_processor

__all__ = ["JBatchProcessorConfig", "build_processor"]
