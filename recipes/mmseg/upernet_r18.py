# UPerNet on ResNet-18 in mmsegmentation's notation, small enough for a try on CPUs:
#   pmm run recipes/shapes.yaml --set segmenter.config=recipes/mmseg/upernet_r18.py \
#       --set segmenter.weights=none
# Number of classes, ignore value and the loss of the heads are put in by the run.
_base_ = "base/resnet.py"
model = dict(
    backbone=dict(depth=18, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
    decode_head=dict(
        type="UPerHead",
        in_channels=[64, 128, 256, 512],
        in_index=[0, 1, 2, 3],
        channels=128,
        pool_scales=(1, 2, 3, 6),
    ),
    auxiliary_head=dict(in_channels=256, channels=64),
)
