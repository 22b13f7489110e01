"""Fine-tuning in the trainers that people use: each file is complete, and one way to do it.

    python -m examples.trainers.nnx_tpgm         Flax NNX: batch statistics, dropout, held-out loss
    python -m examples.trainers.linen_tpgm       Flax linen's `TrainState`; the same
    python -m examples.trainers.equinox_ftp      Equinox, whose weights have outputs first
    python -m examples.trainers.lora             adapters near zero on frozen weights
    python -m examples.trainers.accumulation     one step for several batches
    python -m examples.trainers.mixed_precision  bfloat16 arithmetic on float32 weights

From the repository's root, after `pip install -e '.[trainers]'`; 10 to 20 seconds of one core each,
mostly compilation, and less with `--fast`, a rehearsal. `data` is what they all train on.

Per cent of 500 handwritten digits, and the mean over thirteen shifted sets, of a first run:

                      pre-trained    Adam alone     wrapped
    nnx_tpgm          58.0 / 54.9    99.0 / 55.1    99.2 / 61.7
    linen_tpgm        56.2 / 55.6    99.0 / 57.6    99.0 / 63.1
    equinox_ftp       52.4 / 53.0    98.4 / 54.4    98.0 / 66.2
    lora              60.0 / 57.2    98.0 / 56.0    97.6 / 69.5
    accumulation      57.2 / 56.0    99.0 / 56.1    98.2 / 70.6
    mixed_precision   54.6 / 55.9                   98.8 / 68.6

One seed, and one learning rate, which is large for Adam alone: a smaller one costs it less under
shift. The comparison of methods is the demo, `examples.digits`; these show how to write it.
"""
