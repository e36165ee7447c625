# What a segmenter on a ResNet has, whatever its head: a base of the configs in the folder above.
norm_cfg = dict(type="SyncBN", requires_grad=True)
head = dict(
    dropout_ratio=0.1,
    num_classes=21,
    norm_cfg=norm_cfg,
    align_corners=False,
)
model = dict(
    type="EncoderDecoder",
    backbone=dict(
        type="ResNetV1c",
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style="pytorch",
        contract_dilation=True,
    ),
    decode_head=dict(
        **head,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_index=2,
        num_convs=1,
        concat_input=False,
        **head,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
