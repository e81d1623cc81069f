"""Songs in, stem files out.

decode.py, ffmpeg.py     songs -> blocks of samples; containers.py: which type a file is, and where its tags are
truncation.py            how much audio a file holds: truncated, concatenated or damaged ones; one module each for
MP3 and for what ffmpeg reads; file_parts.py: files as those see them
resample.py, reblock.py  blocks at another sample rate, or of another length
formats.py               formats of stems, with bit depths and bitrates
encode.py, tags.py       samples and tags -> one file; mp4.py, stem_mp4.py: stem files for DJ software
stem_writer.py           all stems of a song, or none; stem_paths.py: their names; atomic_file.py: temporary files
ffmpeg_process.py        runs ffmpeg, and kills it if it hangs
"""
