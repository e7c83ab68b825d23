"""What a SpeechLM reads beside tokens, on the first pipeline stage: an encoder's vectors, through an adapter."""
