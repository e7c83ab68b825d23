"""What the commands of the speech decoder do."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from launch.runfolder import load_run
from runtime.exits import DONE, BadInput


def resynthesize(options: Namespace) -> int:
    """Sound files through codes and back: FILE.wav in the folder `--out` for each."""
    from data_pipeline.audio import encode_wav
    from data_pipeline.build import codec_of
    from train.decoder.resynthesis import said_again
    from train.decoder.synthesis import Decoder

    run, folder = Path(options.run_folder), Path(options.out)
    targets = {sound: folder / f"{Path(sound).stem}.wav" for sound in options.sounds}
    if len(set(targets.values())) < len(targets):
        raise BadInput("two of the sound files have the same name: they would be written to one file")
    config = load_run(run)
    decoder = Decoder.load(run, Path(options.vocoder) if options.vocoder else None, options.device)
    codec = codec_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    for sound, target in targets.items():
        wave = said_again(decoder, codec, config, Path(sound), stream=options.stream)
        target.write_bytes(encode_wav(wave, decoder.rate))
        print(f"{target}\t{len(wave) / decoder.rate:.2f} s", flush=True)
    return DONE
