"""Files as public programs write them, made from the description of their layouts.

`classes` are foreground classes that count from 0; `maps` are their CAMs, float32 [K, H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Maps = NDArray[np.float32]
Write = Callable[[Path, str, list[int], Maps], None]


def blobs(classes: list[int], height: int, width: int) -> Maps:
    """A CAM for each class: a bump with a maximum of one, elsewhere nearly zero."""
    y, x = np.mgrid[:height, :width]
    maps = []
    for place, number in enumerate(classes):
        down, right = (place + 0.5) / len(classes) * height, (number % 7 + 0.5) / 7 * width
        bump = np.exp(-(((y - down) / height) ** 2 + ((x - right) / width) ** 2) * 20)
        maps.append(bump / bump.max())
    return np.array(maps, np.float32).reshape(len(classes), height, width)


def small(maps: Maps) -> Maps:
    """The maps at stride 4."""
    size = (max(1, maps.shape[2] // 4), max(1, maps.shape[1] // 4))
    return np.array([cv2.resize(m, size, interpolation=cv2.INTER_AREA) for m in maps], np.float32)


def with_background(maps: Maps) -> Maps:
    """Shares of the background and every class, [K + 1, H, W], which add up to one."""
    planes = np.concatenate([((1 - maps.max(0, initial=0)) ** 4)[None], maps])
    shares: Maps = (planes / planes.sum(0)).astype(np.float32)
    return shares


def save(folder: Path, name: str, content: Any) -> None:
    path = folder / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content)


def irn(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """IRN step/make_cam.py: tensors at stride 4, an array at full size."""
    content = {
        "keys": torch.tensor(classes),
        "cam": torch.from_numpy(small(maps)),
        "high_res": maps,
    }
    save(folder, name, content)


def toco(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """ToCo tools/infer_seg_as_cam.py."""
    save(folder, name, {"keys": np.array(classes), "high_res": maps})


def afa(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """AFA: `cam` at full size."""
    save(folder, name, {"keys": np.array(classes), "cam": maps})


def seam(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """SEAM and many others: class -> map, slightly negative."""
    save(folder, name, {k: m - np.float32(1e-5) for k, m in zip(classes, maps, strict=True)})


def clip_es(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    save(folder, name, {"keys": np.array(classes), "attn_highres": maps.astype(np.float16)})


def puzzlecam(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """PuzzleCAM inference_classification.py: a number for the background, and no plane."""
    keys = np.pad(np.array(classes) + 1, (1, 0))
    save(folder, name, {"keys": keys, "cam": torch.from_numpy(small(maps)), "hr_cam": maps})


def puzzlecam_plain(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    save(folder, name, {"keys": np.array(classes), "cam": small(maps), "hr_cam": maps})


def puzzlecam_walked(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """PuzzleCAM inference_rw.py."""
    save(folder, name, {"keys": np.pad(np.array(classes) + 1, (1, 0)), "rw": maps})


def more(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    keys = np.array(classes)
    save(folder, name, {"valid_lam": maps, "keys": keys, "keys_gt": keys})


def excel(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """ExCEL: plane 0 is the background."""
    save(folder, name, {"valid_lam": with_background(maps), "keys_gt": np.array(classes)})


def pot(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """POT: the background is class 0, with a plane of its own."""
    keys, planes = np.pad(np.array(classes) + 1, (1, 0)), with_background(maps)
    save(folder, name, {"keys": keys, "IS_CAM": planes, "IS_CAM1": planes**2})


def fma(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", cam=small(maps), fg_cls=np.array(classes))


def own(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """Our own layout for any program."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", cam=maps, keys=np.array(classes), size=maps.shape[1:])


def l2g_coco(folder: Path, name: str, classes: list[int], maps: Maps) -> None:
    """L2G test_l2g_coco.py: a grey file for each class."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in zip(classes, maps, strict=True):
        Image.fromarray((plane * 255).astype(np.uint8)).save(folder / f"{name}_{number}.png")


CAMS: dict[str, tuple[str, Write]] = {
    "IRN": ("irn", irn),
    "ToCo": ("irn", toco),
    "AFA": ("irn", afa),
    "SEAM": ("seam", seam),
    "CLIP-ES": ("clip-es", clip_es),
    "PuzzleCAM": ("puzzlecam", puzzlecam),
    "PuzzleCAM, unpadded": ("puzzlecam", puzzlecam_plain),
    "PuzzleCAM after the walk": ("puzzlecam", puzzlecam_walked),
    "MoRe": ("more", more),
    "ExCEL": ("excel", excel),
    "POT": ("pot", pot),
    "FMA-WSSS": ("fma", fma),
    "ours": ("npz", own),
    "L2G on COCO": ("per-class", l2g_coco),
}
"""Every row of CAMs: the layout it must be told as, and its writer."""


# scores: `logits` are float32 [C, H, W] of all classes, the background first


def softmax(logits: Maps) -> Maps:
    grown = np.exp(logits - logits.max(0))
    shares: Maps = (grown / grown.sum(0)).astype(np.float32)
    return shares


def crf_dictionary(folder: Path, name: str, logits: Maps) -> None:
    """SEAM, PSA, EPS, S2C, ACR `_crf_with_alpha`: the background and the classes that are there."""
    shares = softmax(logits)
    present = [0, *(1 + np.flatnonzero(shares[1:].max((1, 2)) > 0.05))]
    kept = shares[present] / shares[present].sum(0)
    save(folder, name, {int(k): plane for k, plane in zip(present, kept, strict=True)})


def weaktr(folder: Path, name: str, logits: Maps) -> None:
    """WeakTr segm/eval/miou.py: the classes that win somewhere."""
    shares = softmax(logits)
    keys = np.unique(shares.argmax(0))
    save(folder, name, {"prob": shares[keys], "keys": keys})


def excel_scores(folder: Path, name: str, logits: Maps) -> None:
    """ExCEL tools/infer_lam.py: maps from 0 to 1 behind `1 - max`, which has no number."""
    shares = softmax(logits)[1:]
    classes = np.flatnonzero(shares.max((1, 2)) > 0.05)
    planes = np.concatenate([1 - shares[classes].max(0, keepdims=True), shares[classes]])
    save(folder, name, {"valid_lam": planes, "keys_gt": classes})


def toco_logits(folder: Path, name: str, logits: Maps) -> None:
    """ToCo, DuPL, SeCo: with a batch axis."""
    save(folder, name, {"msc_seg": logits[None]})


def weclip_logits(folder: Path, name: str, logits: Maps) -> None:
    """WeCLIP, AFA: of one scale and of several."""
    save(folder, name, {"segs": logits * 0.5, "msc_segs": torch.from_numpy(logits[None])})


def deeplab(folder: Path, name: str, logits: Maps) -> None:
    """deeplab-pytorch, BECO: a bare array."""
    save(folder, name, logits)


def own_scores(folder: Path, name: str, logits: Maps) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", scores=softmax(logits).astype(np.float16))


SCORES: dict[str, tuple[str, Callable[[Path, str, Maps], None]]] = {
    "SEAM after the CRF": ("crf", crf_dictionary),
    "WeakTr": ("prob", weaktr),
    "ExCEL": ("excel", excel_scores),
    "ToCo": ("logits", toco_logits),
    "WeCLIP": ("logits", weclip_logits),
    "deeplab-pytorch": ("array", deeplab),
    "ours": ("npz", own_scores),
}
"""Every row of scores."""
