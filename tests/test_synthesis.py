"""Laws of the synthetic defects: repeatable, local, within bounds, never empty."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from flawflow.configs import read_settings
from flawflow.errors import ImageError, OptionError
from flawflow.synthesis import (
    METHODS,
    NSA_CLASSES,
    CutPasteSettings,
    FpiSettings,
    MixtureSettings,
    NsaSettings,
    PerlinSettings,
    StainSettings,
    StrokeSettings,
    SynthesisSettings,
    automatic_settings,
    changed_pixels,
    cutpaste_patch,
    cutpaste_scar,
    draw_synthetic,
    fpi,
    nsa,
    nsa_settings,
    object_mask,
    perlin,
    sharpen,
    stains,
    strokes,
)
from flawflow.synthesis.draw import _synthesise
from flawflow.synthesis.nsa import _blend, _resized, _source_box, half_size
from flawflow.synthesis.perlin import perlin_noise
from flawflow.types import Image, Mask

SYNTHESISERS: dict[str, Callable[..., tuple[Image, Mask]]] = {
    "nsa": lambda *a: nsa(*a, NsaSettings(texture=True)),
    "cutpaste": lambda *a: cutpaste_patch(*a, CutPasteSettings()),
    "scar": lambda *a: cutpaste_scar(*a, CutPasteSettings()),
    "fpi": lambda *a: fpi(*a, FpiSettings()),
    "perlin": lambda *a: perlin(*a, PerlinSettings(threshold=0.2)),
    "strokes": lambda *a: strokes(*a, StrokeSettings()),
    "stains": lambda *a: stains(*a, StainSettings()),
}


def texture(seed: int, height: int = 96, width: int = 96) -> Image:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width, 3)), (0, 0), 2)
    return np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def on_background(seed: int, brightness: int, axes: tuple[int, int], angle: float = 0.0) -> Image:
    """A textured ellipse near the centre of 128x128 pixels, on a slightly noisy plain background."""
    rng = np.random.default_rng(seed)
    image = np.clip(rng.normal(brightness, 2, size=(128, 128, 3)), 0, 255).astype(np.uint8)
    shape = np.zeros((128, 128), np.uint8)
    centre = (64 + int(rng.integers(-3, 4)), 64 + int(rng.integers(-3, 4)))
    cv2.ellipse(shape, centre, axes, angle, 0, 360, 1, -1)
    image[shape > 0] = np.clip(texture(seed, 128, 128)[shape > 0] // 4 * 2 + 30, 0, 255)
    return image


TEXTURES = [texture(seed) for seed in range(4)]


@pytest.mark.parametrize("method", SYNTHESISERS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(16, 130), width=st.integers(16, 130))
def test_every_synthesiser_is_pure_and_marks_what_it_changed(method: str, seed: int, height: int, width: int) -> None:
    image, source = texture(1, height, width), texture(2, height, width)
    before = image.copy(), source.copy()
    first, mask = SYNTHESISERS[method](image, source, np.random.default_rng(seed))
    again, same_mask = SYNTHESISERS[method](image, source, np.random.default_rng(seed))
    assert first.shape == image.shape and first.dtype == np.uint8
    assert mask.shape == (height, width) and mask.dtype == np.bool_
    assert np.array_equal(first, again) and np.array_equal(mask, same_mask)
    assert np.array_equal(image, before[0]) and np.array_equal(source, before[1])
    if method not in ("strokes", "stains"):  # hairlines would be wiped out, soft borders counted in full
        assert np.array_equal(mask, changed_pixels(image, first))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("stains", "mixture")])
def test_the_mask_covers_every_solid_change_and_nothing_far_from_one(method: str) -> None:
    chosen = SynthesisSettings(method=method, nsa=NSA_CLASSES["carpet"])  # type: ignore[arg-type]
    square = np.ones((5, 5), np.uint8)
    for repetition in range(8):
        drawn = draw_synthetic(TEXTURES, 4, 1, repetition, 5, chosen)
        assert drawn is not None and drawn.mask.any()
        difference = np.abs(drawn.defective.astype(int) - drawn.normal).mean(axis=2)
        changed = (difference > 1).astype(np.uint8)
        assert drawn.mask[cv2.erode(changed, square) > 0].all()
        assert not drawn.mask[cv2.dilate(changed, square) == 0].any()


def test_pixels_outside_the_blended_boxes_are_untouched() -> None:
    image, source = TEXTURES[:2]
    one = NsaSettings(patches=1, texture=True)
    for seed in range(20):
        result, mask = nsa(image, source, np.random.default_rng(seed), one)
        if not mask.any():
            continue
        near = cv2.dilate(mask.astype(np.uint8), np.ones((39, 39), np.uint8)) > 0
        assert np.array_equal(result[~near], image[~near])
        rows, columns = np.nonzero((result != image).any(axis=2))
        # A single patch changes one box of at most 0.4 of each side.
        assert np.ptp(rows) + 1 <= 0.4 * 96 and np.ptp(columns) + 1 <= 0.4 * 96


@pytest.mark.parametrize("height,width", [(12, 17), (33, 20), (38, 38), (5, 30)])
def test_blending_a_region_equals_blending_the_whole_image(height: int, width: int) -> None:
    image, source = TEXTURES[0].copy(), np.ascontiguousarray(TEXTURES[1][:height, :width])
    top, left = 21, 34
    mask = np.full((height, width), 255, np.uint8)
    mask[[0, -1]] = 0
    mask[:, [0, -1]] = 0
    centre = (left + width // 2, top + height // 2)
    expected = cv2.seamlessClone(source, image, mask, centre, cv2.NORMAL_CLONE)
    assert not np.array_equal(expected, image)
    _blend(image[top : top + height, left : left + width], source)
    assert np.array_equal(image, expected)


@pytest.mark.parametrize("height,width", [(1, 96), (2, 90), (3, 3), (3, 60), (4, 40), (8, 8)])
def test_patches_too_small_to_blend_leave_the_image_alone(height: int, width: int) -> None:
    image = TEXTURES[0].copy()
    _blend(image[:height, :width], np.ascontiguousarray(TEXTURES[1][:height, :width]))
    assert np.array_equal(image, TEXTURES[0])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(16, 500), width=st.integers(16, 500))
@pytest.mark.parametrize("name", ["carpet", "capsule", "screw", "toothbrush"])
def test_patch_sizes_stay_within_the_bounds(name: str, seed: int, height: int, width: int) -> None:
    chosen = replace(NSA_CLASSES[name], background=None)
    rng = np.random.default_rng(seed)
    box = _source_box((height, width), None, rng, chosen)
    assert box is not None
    top, bottom, left, right = box
    assert 0 <= top < bottom <= height and 0 <= left < right <= width
    assert bottom - top <= max(2, 2 * chosen.height_bounds[1] * height)
    assert right - left <= max(2, 2 * chosen.width_bounds[1] * width)
    new_height, new_width = _resized(bottom - top, right - left, (height, width), rng, chosen)
    assert 1 <= new_height <= max(1, chosen.height_bounds[1] * height)
    assert 1 <= new_width <= max(1, chosen.width_bounds[1] * width)


def test_half_sizes_follow_the_gamma_distribution() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([half_size(rng, (0.0, 0.49), 1000) for _ in range(4000)]) / 1000
    assert sizes.min() >= 0.03 - 1e-3  # the offset
    assert sizes.mean() == pytest.approx(0.03 + 2 * 0.05, abs=0.005)  # offset + shape x scale
    assert sizes.std() == pytest.approx(np.sqrt(2) * 0.05, abs=0.006)


@pytest.mark.parametrize("name", NSA_CLASSES)
def test_every_published_row_draws_and_is_json(name: str) -> None:
    chosen = nsa_settings(name)
    brightness = chosen.background[0] if chosen.background else 128
    # DARK rows call everything brighter than 40 an object, BRIGHT rows everything darker than 140.
    images = [on_background(seed, 230 if brightness == 200 else 8, (45, 45)) for seed in range(3)]
    settings_ = SynthesisSettings(nsa=chosen)
    assert read_settings(SynthesisSettings, json.loads(json.dumps(asdict(settings_))), "synthesis") == settings_
    drawn = [draw_synthetic(images, 3, i, 0, 1, settings_) for i in range(3)]
    assert all(one is not None and one.mask.any() for one in drawn)


def test_rows_differ_where_the_products_do() -> None:
    assert nsa_settings("carpet").texture and nsa_settings("carpet").patches == 4
    assert nsa_settings("bottle").background == (200, 60)
    for name in ("cable", "transistor"):
        assert nsa_settings(name).background is None and not nsa_settings(name).texture
    assert nsa_settings("cable").height_bounds[0] == 0.05
    assert len(NSA_CLASSES) == 15 + 3 + 1
    with pytest.raises(OptionError, match=r"bolt.*carpet.*dagm"):
        nsa_settings("bolt")


def test_patches_fall_on_the_object() -> None:
    images = [on_background(seed, 230, (30, 30)) for seed in range(3)]
    found = automatic_settings(images)
    for repetition in range(10):
        drawn = draw_synthetic(images, 3, 0, repetition, 3, SynthesisSettings(nsa=found, sharpness=0.0))
        assert drawn is not None and found.background is not None
        assert (drawn.mask & object_mask(drawn.normal, found.background)).any()


@pytest.mark.parametrize("method", METHODS)
def test_draws_depend_on_their_arguments_alone(method: str) -> None:
    chosen = SynthesisSettings(method=method)  # type: ignore[arg-type]
    keys = [(index, repetition) for repetition in range(3) for index in range(4)]

    def draw(key: tuple[int, int]) -> bytes:
        drawn = draw_synthetic(TEXTURES, 4, *key, 7, chosen)
        assert drawn is not None
        return drawn.normal.tobytes() + drawn.defective.tobytes() + drawn.mask.tobytes()

    in_order = {key: draw(key) for key in keys}
    with ThreadPoolExecutor(3) as pool:
        backwards = dict(zip(keys[::-1], pool.map(draw, keys[::-1]), strict=True))
    assert in_order == backwards
    assert len(set(in_order.values())) == len(keys)  # another image or repetition: another defect


def test_the_seed_matters_and_a_loader_serves_as_well_as_a_sequence() -> None:
    chosen = SynthesisSettings()
    first, second = (draw_synthetic(TEXTURES, 4, 0, 0, seed, chosen) for seed in (1, 2))
    loaded = draw_synthetic(lambda index: TEXTURES[index], 4, 0, 0, 1, chosen)
    assert first is not None and second is not None and loaded is not None
    assert not np.array_equal(first.defective, second.defective)
    assert np.array_equal(first.defective, loaded.defective)


def test_the_source_is_always_another_image() -> None:
    for index in range(3):
        asked: list[int] = []
        for repetition in range(12):

            def load(number: int, asked: list[int] = asked) -> Image:
                asked.append(number)
                return TEXTURES[number]

            draw_synthetic(load, 3, index, repetition, 0, SynthesisSettings())
        assert set(asked[0::2]) == {index}
        assert set(asked[1::2]) == {0, 1, 2} - {index}


def test_sharpness_is_drawn_with_its_probability() -> None:
    sharp = sharpen(TEXTURES[0])
    assert sharp.astype(float).std() > TEXTURES[0].astype(float).std()
    for probability, low, high in ((0.0, 0, 0), (0.5, 20, 60), (1.0, 80, 80)):
        chosen = SynthesisSettings(method="cutpaste", sharpness=probability)
        drawn = [draw_synthetic(TEXTURES, 4, 0, r, 0, chosen) for r in range(80)]
        assert low <= sum(one is not None and np.array_equal(one.normal, sharp) for one in drawn) <= high


def test_an_image_that_cannot_be_changed_gives_none() -> None:
    flat = [np.full((64, 64, 3), 90, np.uint8)] * 3
    assert draw_synthetic(flat, 3, 0, 0, 0, SynthesisSettings()) is None
    result, mask = nsa(flat[0], flat[1], np.random.default_rng(0), NsaSettings())
    assert np.array_equal(result, flat[0]) and not mask.any()
    # Nothing is object: every patch is skipped.
    empty = replace(nsa_settings("bottle"), background=(90, 60))
    result, mask = nsa(flat[0], texture(0, 64, 64) // 8 + 80, np.random.default_rng(0), empty)
    assert np.array_equal(result, flat[0]) and not mask.any()


def test_mixture_takes_what_it_is_told_to() -> None:
    image = TEXTURES[:2]
    names = [field.name for field in fields(MixtureSettings)]
    for name in names:
        only = MixtureSettings(**(dict.fromkeys(names, 0.0) | {name: 1.0}))
        mixed = draw_synthetic(image, 2, 0, 0, 0, SynthesisSettings(method="mixture", mixture=only, sharpness=0.0))
        assert mixed is not None
        plain = SynthesisSettings(method=name, sharpness=0.0)  # type: ignore[arg-type]
        for attempt in range(10):
            rng = np.random.default_rng(np.random.SeedSequence((0, 0, 0, attempt)))
            # The source, two chances of sharpening and the choice itself have used the generator before.
            rng.integers(1), rng.random(3)
            result, mask = _synthesise(image[0], image[1], rng, plain)
            if mask.any():
                break
        assert np.array_equal(result, mixed.defective) and np.array_equal(mask, mixed.mask)
    with pytest.raises(OptionError, match="sum to 1"):
        MixtureSettings(0.5, 0.5, 0.5, 0.0)


def test_perlin_noise_is_smooth_and_centred() -> None:
    noise = perlin_noise(128, 160, 8, 4, np.random.default_rng(0))
    assert noise.shape == (128, 160) and noise.dtype == np.float32
    assert np.abs(noise).max() <= 1.01 and abs(noise.mean()) < 0.2 and noise.std() > 0.1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.3 and np.abs(np.diff(noise, axis=1)).max() < 0.3


def test_perlin_leaves_a_named_background_alone() -> None:
    image = on_background(0, 230, (30, 30))
    chosen = PerlinSettings(threshold=0.0, background=(230, 20))
    result, mask = perlin(image, TEXTURES[0].repeat(2, 0).repeat(2, 1)[:128, :128], _rng(), chosen)
    outside = ~object_mask(image, (230, 20))
    assert mask.any() and np.array_equal(result[outside], image[outside])


def test_strokes_are_thin_and_change_nothing_beside_them() -> None:
    image = np.full((224, 320, 3), (90, 140, 60), np.uint8)
    shares = []
    for seed in range(60):
        result, mask = strokes(image, image, np.random.default_rng(seed), StrokeSettings())
        beyond = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13), np.uint8)) == 0
        assert np.array_equal(result[beyond], image[beyond]) or not mask.any()
        assert np.all(result[mask] != image[mask])
        shares.append(mask.mean())
    assert 0.0 < np.median(shares) < 0.01 and max(shares) < 0.05


def test_strokes_leave_a_named_background_alone() -> None:
    image = on_background(0, 230, (30, 30))
    for seed in range(20):
        result, _ = strokes(image, image, np.random.default_rng(seed), StrokeSettings(background=(230, 20)))
        outside = ~object_mask(image, (230, 20))
        assert np.array_equal(result[outside], image[outside])


def test_stains_shade_softly_keep_the_texture_and_leave_grey_grey() -> None:
    image = texture(3, 160, 200) // 2 + 40
    grey = np.repeat(image[..., :1], 3, axis=2)
    for seed in range(30):
        wanted = StainSettings(area=(0.05, 0.2), strength=(0.3, 0.5))
        result, mask = stains(image, image, np.random.default_rng(seed), wanted)
        assert 0.02 < mask.mean() < 0.25
        ratio = result[mask].astype(float) / image[mask]
        assert (ratio < 1).mean() > 0.98 or (ratio > 1).mean() > 0.98
        assert ratio.min() > 0.4 and ratio.max() < 1.6
        # One shade a colour at full strength: what varies within the stain is its soft border alone.
        inner = cv2.erode(mask.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
        if inner.any():
            assert np.ptp(result[inner].astype(float) / image[inner], axis=0).max() < 0.1
        shaded, _ = stains(grey, grey, np.random.default_rng(seed), wanted)
        assert np.array_equal(shaded[..., 0], shaded[..., 1]) and np.array_equal(shaded[..., 0], shaded[..., 2])


def test_stains_leave_a_named_background_alone() -> None:
    image = on_background(0, 230, (30, 30))
    outside = ~object_mask(image, (230, 20))
    for seed in range(20):
        result, mask = stains(image, image, np.random.default_rng(seed), StainSettings(background=(230, 20)))
        assert np.array_equal(result[outside], image[outside]) and not mask[outside].any()


def _rng() -> np.random.Generator:
    return np.random.default_rng(11)


@settings(max_examples=15, deadline=None)
@given(brightness=st.integers(170, 255), seed=st.integers(0, 1000))
def test_automatic_settings_find_an_object_on_a_bright_background(brightness: int, seed: int) -> None:
    images = [on_background(seed + i, brightness, (50, 20)) for i in range(5)]
    found = automatic_settings(images)
    assert found.background is not None and not found.texture
    assert abs(found.background[0] - brightness) <= 3
    share = object_mask(images[0], found.background).mean()
    assert share == pytest.approx(np.pi * 50 * 20 / 128**2, rel=0.15)
    # The ellipse is 100 pixels wide and 40 high: bounds of half sizes follow, 0.4 of the extent.
    assert found.width_bounds[1] == pytest.approx(0.4 * 100 / 128, rel=0.15)
    assert found.height_bounds[1] == pytest.approx(0.4 * 40 / 128, rel=0.15)


def test_automatic_settings_on_a_dark_background_and_for_thin_parts() -> None:
    dark = automatic_settings([on_background(i, 4, (45, 45)) for i in range(4)])
    assert dark.background is not None and dark.background[0] <= 10 and dark.min_object == 0.7
    thin = automatic_settings([on_background(i, 220, (55, 6), 45.0) for i in range(4)])
    assert thin.background is not None and thin.min_object == 0.25
    assert thin.height_bounds[1] < 0.2 and thin.width_bounds[1] < 0.2
    images = [on_background(i, 220, (55, 6), 45.0) for i in range(4)]
    assert draw_synthetic(images, 4, 0, 0, 0, SynthesisSettings(nsa=thin)) is not None


def test_automatic_settings_call_anything_without_a_plain_background_a_texture() -> None:
    rows = np.linspace(-1, 1, 128)
    lit = 220 - 110 * np.minimum(1.0, rows[:, None] ** 2 + rows[None, :] ** 2)
    vignette = np.repeat(lit[..., None], 3, axis=2).astype(np.uint8)
    faint = [(texture(i) // 16 + 100).astype(np.uint8) for i in range(4)]
    flat = [np.full((64, 80, 3), 77, np.uint8)] * 3
    for images in (TEXTURES, [vignette] * 3, faint, flat):
        assert automatic_settings(images) == nsa_settings("carpet")
    with pytest.raises(OptionError, match="at least one"):
        automatic_settings([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": "nsa"}, "methods.*method"),
        ({"nsa": {"patch": 3}}, "synthesis.nsa has no setting patch"),
        ({"method": "magic"}, "magic.*mixture"),
        ({"nsa": {"patches": 0}}, "at least 1"),
        ({"nsa": {"patches": "3"}}, "patches is '3'"),
        ({"nsa": {"height_bounds": [0.3, 0.1]}}, "height_bounds"),
        ({"nsa": {"background": [300, 5]}}, "background"),
        ({"nsa": {"background": [30]}}, "background"),
        ({"nsa": 4}, "synthesis.nsa is 4"),
        ({"sharpness": 1.5}, "sharpness"),
        ({"sharpness": True}, "sharpness"),
        ({"perlin": {"max_transparency": 2.0}}, "max_transparency"),
        ({"strokes": {"width": [0.2, 0.3]}}, "strokes.width"),
        ({"stains": {"strength": [0.2, 1.3]}}, "stains.strength"),
        ({"cutpaste": {"area": [0.1, 4]}}, "area"),
    ],
)
def test_settings_that_make_no_sense_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read_settings(SynthesisSettings, values, "synthesis")


@settings(max_examples=25, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    patches=st.integers(1, 9),
    sharpness=st.floats(0, 1),
    background=st.none() | st.tuples(st.integers(0, 255), st.integers(0, 255)),
    high=st.floats(0.05, 0.45),
)
def test_settings_survive_json(
    method: str, patches: int, sharpness: float, background: tuple[int, int] | None, high: float
) -> None:
    chosen = SynthesisSettings(
        method=method,  # type: ignore[arg-type]
        sharpness=sharpness,
        nsa=NsaSettings((0.03, high), (0.0, high), patches, background, 0.5),
        perlin=PerlinSettings(background=background),
    )
    assert read_settings(SynthesisSettings, json.loads(json.dumps(asdict(chosen))), "synthesis") == chosen


def test_bad_input_is_explained() -> None:
    with pytest.raises(OptionError, match="at least 2 images"):
        draw_synthetic(TEXTURES[:1], 1, 0, 0, 0, SynthesisSettings())
    assert draw_synthetic(TEXTURES[:1], 1, 0, 0, 0, SynthesisSettings(method="cutpaste")) is not None
    for index, repetition, seed in ((4, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 0, -1)):
        with pytest.raises(OptionError, match="expected an index"):
            draw_synthetic(TEXTURES, 4, index, repetition, seed, SynthesisSettings())
    for other in (texture(0, 96, 80), TEXTURES[0][..., 0], TEXTURES[0].astype(np.float32)):
        with pytest.raises(ImageError, match=r"one size|uint8 RGB"):
            nsa(TEXTURES[0], other, _rng(), NsaSettings())  # type: ignore[arg-type]


def _real(folder: Path, pattern: str) -> list[Image]:
    paths = sorted(folder.glob(pattern))[::60][:4]
    assert len(paths) >= 2
    lanczos = PilImage.Resampling.LANCZOS
    return [np.asarray(PilImage.open(path).convert("RGB").resize((256, 256), lanczos)) for path in paths]


def test_real_bottles(shared: Path) -> None:
    images = _real(shared / "data/mvtec_ad/bottle/train/good", "*.png")
    found = automatic_settings(images)
    assert found.background is not None and found.background[0] > 200 and found.min_object == 0.7
    published = object_mask(images[0], (200, 60))
    mask = object_mask(images[0], found.background)
    assert (mask & published).sum() / (mask | published).sum() > 0.95
    for row in (found, nsa_settings("bottle")):
        drawn = draw_synthetic(images, len(images), 0, 0, 0, SynthesisSettings(nsa=row, sharpness=0.0))
        assert drawn is not None and 0.0005 < drawn.mask.mean() < 0.4
        assert (drawn.mask & mask).any()


def test_real_magnetic_tiles_are_textures(shared: Path) -> None:
    images = _real(shared / "data/magnetic_tile/MT_Free/Imgs", "*.jpg")
    assert automatic_settings(images) == nsa_settings("tile")
    assert draw_synthetic(images, len(images), 1, 0, 0, SynthesisSettings(nsa=nsa_settings("tile"))) is not None
