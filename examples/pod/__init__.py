"""Fine-tuning a decoder on all devices there are: one CPU, several processes, a TPU pod.

A small language model is pre-trained on made-up languages, then fine-tuned on another one or on a
text file, with FTP, TPGM or plain AdamW. What is spread over the devices, saved, resumed and
logged is what a large model would need; nothing is downloaded.

In reading order: `settings` says what determines a run, `options` is the command line; `data`
makes the batches; `model` is the decoder; `sharding` lays arrays out over the devices; `training`
compiles the step; `checkpoints` saves and restores; `loop` does the steps; `reporting` shows what
comes out. The program is `examples/pod_finetune.py`.
"""
