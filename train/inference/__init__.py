"""Engines that continue prompts with an exported model: transformers in this process, vLLM beside it."""
