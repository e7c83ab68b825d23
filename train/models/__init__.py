"""SpeechLM: inputs on the first pipeline stage, trunk on all, heads on the last."""
