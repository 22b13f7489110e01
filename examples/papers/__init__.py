"""The papers' own experiments: DomainNet with ResNet-50, ImageNet with CLIP's ViT-B/16.

`resnet` and `vit` are the models; `weights` loads their published weights. The programs that read
the images and fine-tune are not written yet.
"""
