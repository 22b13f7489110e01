"""The papers' own experiments: DomainNet with ResNet-50, ImageNet with CLIP's ViT-B/16.

In reading order: `recipes` has the papers' settings, `published` their tables; `lists`, `images`,
`loader` and `corruptions` read images, `sets` assigns images to uses; `resnet` and `vit` are the
models, `weights` loads their published weights, `models` makes functions of them; `methods` are the
optimizers; `training` compiles the step; `checkpoints`, `loop` and `evaluation` run it; `estimate`
is the dry run, `options` the command line, `run` the whole.
"""
