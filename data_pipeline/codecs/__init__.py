"""Codecs: waveform to codes. `data_pipeline.codecs.codec.Codec` is the interface; each kind is a module here."""
