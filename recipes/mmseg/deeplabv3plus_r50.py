# DeepLabV3+ on ResNet-50, output stride 8, in mmsegmentation's notation:
#   pmm run recipes/voc12.yaml --set segmenter.config=recipes/mmseg/deeplabv3plus_r50.py \
#       --set segmenter.weights=PATH/TO/resnet50_v1c.pth
# Number of classes, ignore value and the loss of the heads are put in by the run.
_base_ = "base/resnet.py"
model = dict(
    backbone=dict(depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    decode_head=dict(
        type="DepthwiseSeparableASPPHead",
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        c1_in_channels=256,
        c1_channels=48,
    ),
    auxiliary_head=dict(in_channels=1024, channels=256),
)
