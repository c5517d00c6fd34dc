from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import save_file
from tiny_models import same

from mft_ray.errors import UserError
from mft_ray.masking import MaskFile, MaskSettings, keep_mask, load_mask, save_mask

SETTINGS = MaskSettings(
    ratio=0.3,
    ratio_mlp=0.25,
    layers="4-7",
    target="mlp",
    scope="layer",
    init="wanda",
    schedule="linear",
    removes="delta",
)
here = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content(*shapes: tuple[int, ...]) -> MaskFile:
    generator = torch.Generator().manual_seed(0)
    masks = {f"layers.{i}.weight": torch.rand(shape, generator=generator) < 0.7 for i, shape in enumerate(shapes)}
    return MaskFile(masks, SETTINGS, "f" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mask.safetensors"


@given(
    st.dictionaries(
        st.text("abc.é", min_size=1),
        arrays(bool, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)),
        min_size=1,
        max_size=3,
    )
)
@here
def test_round_trip(path: Path, masks: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]) -> None:
    given_masks = {name: torch.from_numpy(mask) for name, mask in masks.items()}
    save_mask(path, MaskFile(given_masks, SETTINGS, "abc", before="def", origin="lab/base@123"))
    loaded = load_mask(path)
    assert loaded.settings == SETTINGS
    assert (loaded.backbone, loaded.before, loaded.origin) == ("abc", "def", "lab/base@123")
    assert loaded.masks.keys() == given_masks.keys()
    for name, mask in given_masks.items():
        assert loaded.masks[name].dtype == torch.bool
        assert loaded.masks[name].shape == mask.shape
        assert torch.equal(loaded.masks[name], mask)


def test_a_transposed_mask_is_written_in_its_own_order(path: Path) -> None:
    mask = (torch.arange(21).view(3, 7) % 2 == 0).t()
    save_mask(path, MaskFile({"w": mask}, SETTINGS, "abc"))
    assert same(load_mask(path).masks, {"w": mask})


def test_at_most_one_bit_and_a_fiftieth_per_weight(path: Path) -> None:
    shapes = [(512, 512), (512, 1365), (1365, 512), (123, 457)]
    save_mask(path, content(*shapes))
    raw = path.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    weights = sum(rows * columns for rows, columns in shapes)
    assert (len(raw) - header) * 8 <= 1.02 * weights
    assert header < 2500


def test_a_mask_of_format_1_is_read(path: Path) -> None:
    # Byte for byte what the first version wrote: no model before fine-tuning, and fewer settings.
    mask = torch.arange(15).view(3, 5) % 4 == 0
    packed = {"layers.0.weight": torch.from_numpy(np.packbits(mask.cpu().numpy()))}
    known = {"ratio": 0.3, "layers": "4-7", "target": "mlp", "init": "magnitude"}
    metadata = {
        "format": "mft_ray mask 1",
        "backbone": "f" * 64,
        "settings": json.dumps({**known, "init_scale": 0.02, "schedule": "anneal", "anneal_fraction": 0.5}),
        "shapes": json.dumps({"layers.0.weight": [3, 5]}),
    }
    summed = "".join(f"{key}={metadata[key]}\n" for key in ("backbone", "format", "settings", "shapes"))
    content = summed.encode() + b"layers.0.weight" + packed["layers.0.weight"].cpu().numpy().tobytes()
    save_file(packed, path, metadata | {"sha256": hashlib.sha256(content).hexdigest()})
    loaded = load_mask(path)
    assert torch.equal(loaded.masks["layers.0.weight"], mask.cpu())
    assert loaded.settings == MaskSettings(**known, schedule="anneal")  # type: ignore[arg-type]
    assert (loaded.backbone, loaded.before) == ("f" * 64, "")


def test_what_a_mask_removes_is_said_and_what_it_claims_in_vain() -> None:
    scores = torch.rand(30, 50, generator=torch.Generator().manual_seed(0))
    honest = MaskFile({"a": keep_mask(scores, 0.3), "b": keep_mask(scores[:, :5], 0.3)}, MaskSettings(ratio=0.3), "f")
    assert str(honest) == "495 of 1,650 weights removed, a ratio of 0.3"
    halves = MaskSettings(ratio_attn=0.2, ratio_mlp=0.4, layers="0")
    assert str(MaskFile(honest.masks, halves, "f")) == str(honest)
    assert str(MaskFile(honest.masks, MaskSettings(rule="threshold"), "f")) == str(honest)
    claims = "495 of 1,650 weights removed, a ratio of 0.3, where its settings say 0.1: it is not what they would make"
    assert str(MaskFile(honest.masks, MaskSettings(ratio=0.1), "f")) == claims
    assert "0 of 0" in str(MaskFile({}, MaskSettings(), "f"))


def test_writing_replaces_and_leaves_nothing_else(path: Path) -> None:
    save_mask(path, content((3, 3)))
    save_mask(path, content((4, 4)))
    assert load_mask(path).masks["layers.0.weight"].shape == (4, 4)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_write_keeps_the_old_file(path: Path) -> None:
    save_mask(path, content((3, 3)))
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_mask(path, MaskFile({"w": None}, SETTINGS, "abc"))  # type: ignore[dict-item]
    assert path.read_bytes() == before


def test_a_truncated_file_is_refused_wherever_it_ends(path: Path) -> None:
    save_mask(path, content((5, 7), (3, 9)))
    raw = path.read_bytes()
    for end in range(len(raw)):
        path.write_bytes(raw[:end])
        with pytest.raises(UserError, match=r"mask\.safetensors is truncated or damaged"):
            load_mask(path)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_a_flipped_byte_is_refused_wherever_it_is(path: Path, flip: int) -> None:
    save_mask(path, content((5, 7), (3, 9)))
    raw = path.read_bytes()
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ flip]) + raw[position + 1 :])
        # Wherever it is: tensors, names, shapes, settings, fingerprint, the checksum itself.
        with pytest.raises(UserError, match=r"mask\.safetensors"):
            load_mask(path)


def test_foreign_files_are_refused(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(UserError, match="is a safetensors file but not a mask that this version reads"):
        load_mask(path)
    for foreign in ("pt", "mft_ray mask 3"):
        save_file({"weight": torch.ones(3)}, path, {"format": foreign})
        with pytest.raises(UserError, match=f"its format is '{foreign}', readable are mft_ray mask 1, mft_ray mask 2"):
            load_mask(path)
    path.write_text("not a mask at all, but longer than eight bytes\n")
    with pytest.raises(UserError, match="truncated or damaged"):
        load_mask(path)


def test_a_missing_file_is_told_with_where_masks_lie(path: Path) -> None:
    for missing in (path, path.parent):
        with pytest.raises(UserError, match=r"There is no mask file .*RUN/best/mask\.safetensors"):
            load_mask(missing)


def forged(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: str | None) -> None:
    """Write what a program of a stranger's could: a file with a right checksum, whatever is in it."""
    packed = {"layers.0.weight": torch.zeros(2, dtype=torch.uint8)} if tensors is None else tensors
    metadata: dict[str, str | None] = {
        "format": "mft_ray mask 2",
        "backbone": "f" * 64,
        "before": "",
        "settings": json.dumps({"ratio": 0.3}),
        "shapes": json.dumps({"layers.0.weight": [3, 5]}),
    }
    kept = {key: value for key, value in (metadata | changes).items() if value is not None}
    digest = hashlib.sha256("".join(f"{key}={kept[key]}\n" for key in sorted(kept)).encode())
    for name in sorted(packed):
        digest.update(name.encode() + packed[name].reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    save_file(packed, path, kept | {"sha256": digest.hexdigest()})


def test_what_is_forged_with_care_is_read(path: Path) -> None:
    forged(path)
    loaded = load_mask(path)
    assert loaded.masks["layers.0.weight"].shape == (3, 5)
    assert loaded.source == str(path)


BYTES = torch.zeros(2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "changes", "says"),
    [
        ({"layers.0.weight": torch.ones(3, 5)}, {}, "layers.0.weight is a tensor of torch.float32 and shape [3, 5]"),
        ({"layers.0.weight": torch.ones(2, dtype=torch.bfloat16)}, {}, "torch.bfloat16"),
        ({"layers.0.weight": torch.ones(3, 5, dtype=torch.bool)}, {}, "torch.bool"),
        ({"layers.0.weight": BYTES[:1]}, {}, "has 1 bytes of bits, and its shape [3, 5] needs 2"),
        ({"layers.0.weight": torch.zeros(3, dtype=torch.uint8)}, {}, "has 3 bytes of bits"),
        ({"layers.0.weight": BYTES, "extra": BYTES.clone()}, {}, "not of the same weights: extra"),
        ({}, {}, "not of the same weights: layers.0.weight"),
        (None, {"shapes": None}, "its metadata has no shapes"),
        (None, {"shapes": "[]"}, "its metadata's shapes are no JSON mapping"),
        (None, {"shapes": "{"}, "its metadata's shapes are no JSON mapping"),
        (None, {"shapes": "[" * 100_000}, "its metadata's shapes are no JSON mapping"),
        (None, {"shapes": json.dumps({"layers.0.weight": [3, -5]})}, "has the shape [3, -5], which is none"),
        (None, {"shapes": json.dumps({"layers.0.weight": "3x5"})}, "has the shape 3x5, which is none"),
        (None, {"shapes": json.dumps({"layers.0.weight": [10**9, 10**9]})}, "needs 125,000,000,000,000,000"),
        (None, {"settings": None}, "its metadata has no settings"),
        (None, {"settings": '{"ratio": NaN}'}, "its setting ratio is nan"),
        (None, {"settings": '{"ratio": "much"}'}, "its setting ratio is 'much'"),
        (None, {"settings": '{"ratio": 1.5}'}, "masking ratio 1.5 is outside"),
        (None, {"settings": '{"threshold": Infinity}'}, "its setting threshold is inf"),
        (None, {"settings": '{"sparsity": 0.5}'}, "its setting sparsity"),
        (None, {"settings": '{"init": ["normal"]}'}, "its setting init"),
        (None, {"settings": "null"}, "its metadata's settings are no JSON mapping"),
        (None, {"backbone": None}, "its metadata has no backbone"),
        (None, {"format": None}, "is a safetensors file but not a mask"),
    ],
)
def test_a_file_of_a_strangers_is_refused_by_name(
    path: Path, tensors: dict[str, torch.Tensor] | None, changes: dict[str, str | None], says: str
) -> None:
    forged(path, tensors, **changes)
    with pytest.raises(UserError) as caught:
        load_mask(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def read(path: Path) -> MaskFile | str:
    """A mask, or the paragraph that a user is told."""
    try:
        return load_mask(path)
    except UserError as error:
        return str(error)


@given(st.data())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_masks_bytes_makes_a_mask_or_a_paragraph(path: Path, data: st.DataObject) -> None:
    save_mask(path, content((5, 7), (3, 9)))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw)))
        kind = data.draw(st.sampled_from(["put", "cut", "insert"]))
        if kind == "put":
            new = data.draw(st.binary(min_size=1, max_size=9))
            raw[place : place + len(new)] = new
        elif kind == "cut":
            del raw[place : place + data.draw(st.integers(1, 60))]
        else:
            raw[place:place] = data.draw(st.binary(max_size=60))
    path.write_bytes(raw)
    loaded = read(path)
    if isinstance(loaded, MaskFile):
        assert same(loaded.masks, content((5, 7), (3, 9)).masks)
    else:
        assert str(path) in loaded


TEXTS = st.text(max_size=6) | st.sampled_from(["{}", "[]", "null", '{"layers.0.weight": [3, 5]}', '{"ratio": 1}'])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
SETTING_VALUES = PLAIN | st.lists(st.integers(), max_size=2)


@given(
    st.dictionaries(st.sampled_from(["shapes", "settings", "backbone", "before"]), TEXTS),
    st.sampled_from([torch.uint8, torch.float32, torch.bool, torch.int64, torch.bfloat16]),
    st.lists(st.integers(0, 4), max_size=3),
    st.dictionaries(
        st.sampled_from(["ratio", "layers", "init", "pattern", "removes", "threshold", "target", "x"]),
        SETTING_VALUES,
    ),
)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_forged_file_makes_a_mask_or_a_paragraph(
    path: Path, changes: dict[str, str], dtype: torch.dtype, shape: list[int], changed_settings: dict[str, object]
) -> None:
    forged(
        path,
        {"layers.0.weight": torch.zeros(shape, dtype=dtype)},
        **{"settings": json.dumps(changed_settings), **changes},
    )
    loaded = read(path)
    if isinstance(loaded, MaskFile):
        assert all(mask.dtype == torch.bool for mask in loaded.masks.values())
    else:
        assert str(path) in loaded
