"""Laws of the league's baselines: invertibility, log-determinants, labels, one seed, one result."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.func import jacrev, vmap

from flawflow.backbones.timm_models import make_network
from flawflow.datasets.generated import generate_image
from flawflow.synthesis import Synthetic
from flawflow.types import Image
from league.baselines import cutpaste, differnet, nsa
from league.baselines.common import MEAN, SPREAD, Baseline, Clock, Reached, endless, to_tensor

CPU = torch.device("cpu")
SMALL_FLOW = differnet.DifferNetSettings(blocks=3, hidden=8)


@pytest.fixture(scope="module")
def images() -> list[Image]:
    return [generate_image("fabric", i, 0, 64)[0] for i in range(4)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_network("resnet18", None, "cpu")
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(dict(network.state_dict()), file)
    return file


def made(name: str, weights: Path) -> Baseline:
    match name:
        case "differnet":
            settings = differnet.DifferNetSettings(
                size=64, scales=2, blocks=2, hidden=8, epochs=2, batch=2, turns=2, rotations=3
            )
            return differnet.DifferNet("resnet18", 2, weights, settings, CPU)
        case "cutpaste":
            return cutpaste.CutPaste(
                cutpaste.CutPasteBaselineSettings(
                    size=32, patch=16, stride=8, head=(8, 4), epochs=1, updates=2, batch=2
                ),
                CPU,
            )
    return nsa.Nsa(None, nsa.NsaBaselineSettings(size=64, epochs=1, batch=2), CPU)


@pytest.mark.parametrize("channels", [6, 7])
def test_the_dense_flow_is_invertible_and_tells_its_determinant(channels: int) -> None:
    torch.manual_seed(0)
    flow = differnet.DenseFlow(channels, SMALL_FLOW).double()
    x = torch.randn(5, channels, dtype=torch.float64)
    z, log_det = flow(x)
    assert torch.allclose(flow.inverse(z), x, atol=1e-10)
    jacobian = vmap(jacrev(lambda one: flow(one[None])[0][0]))(x)
    assert torch.allclose(log_det, torch.linalg.slogdet(jacobian).logabsdet, atol=1e-10)


def test_the_published_flow_has_the_parameters_that_the_paper_counts() -> None:
    with torch.device("meta"):
        coupling = differnet.TwoSidedCoupling(768, 2048, 3.0, torch.arange(768))
    count = 8 * sum(p.numel() for p in coupling.parameters())
    assert round(count / 1e6, 1) == 172.1


@pytest.mark.parametrize("name", ["differnet", "cutpaste", "nsa"])
def test_one_seed_gives_one_result_and_maps_are_finite(name: str, weights: Path, images: list[Image]) -> None:
    scores = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(scores))  # what was drawn elsewhere before must not matter
        detector = made(name, weights)
        detector.fit(images, seed, Clock(math.inf))
        scores.append(detector.score(images[0]))
    (first, one), (second, two), (other, _) = scores
    assert first == second and np.array_equal(one, two)
    assert first != other
    assert one.dtype == np.float32 and one.ndim == 2 and np.isfinite(one).all()


def test_a_training_ends_with_the_epoch_in_which_the_minutes_run_out(images: list[Image]) -> None:
    ticks = iter(np.arange(0.0, 1000.0, 60.0))
    clock = Clock(3, now=lambda: float(next(ticks)))
    assert list(clock.steps(10)) == [0, 1, 2]
    assert list(Clock(math.inf).steps(4)) == [0, 1, 2, 3]
    settings = nsa.NsaBaselineSettings(size=64, epochs=50, batch=4)
    assert nsa.Nsa(None, settings, CPU).fit(images, 0, Clock(0)) == Reached(1, 50)


def test_cutpaste_ends_with_the_update_and_tells_the_part_of_an_epoch(images: list[Image]) -> None:
    settings = cutpaste.CutPasteBaselineSettings(size=32, patch=16, stride=8, head=(8, 4), epochs=3, updates=4, batch=2)
    assert cutpaste.CutPaste(settings, CPU).fit(images, 0, Clock(0)) == Reached(0.25, 3)
    assert cutpaste.CutPaste(settings, CPU).fit(images, 0, Clock(math.inf)) == Reached(3, 3)


def test_updates_are_full_however_few_the_images_and_see_all_alike() -> None:
    drawn = endless(3, 4, np.random.default_rng(0))
    seen = [next(drawn) for _ in range(3)]
    assert [len(batch) for batch in seen] == [4, 4, 4]
    assert np.bincount(np.concatenate(seen)).tolist() == [4, 4, 4]
    passes = np.concatenate(seen).reshape(4, 3)
    assert (np.sort(passes, axis=1) == np.arange(3)).all()


def test_colours_are_jittered_a_little_each_time_anew(images: list[Image]) -> None:
    torch.manual_seed(0)
    one, two = cutpaste.jittered(images[0]), cutpaste.jittered(images[0])
    assert one.shape == images[0].shape and one.dtype == np.uint8
    assert not np.array_equal(one, images[0]) and not np.array_equal(one, two)
    assert np.abs(one.astype(float) - images[0]).mean() < 60


def test_of_the_three_ways_one_is_the_image_itself(images: list[Image]) -> None:
    plain, patched, scarred = cutpaste.three_ways(images[0], 64, np.random.default_rng(0))
    assert plain is images[0]
    for changed in (patched, scarred):
        assert changed.shape == plain.shape and not np.array_equal(changed, plain)


def test_equal_distances_give_an_even_map_and_a_high_one_stands_out_where_it_is() -> None:
    settings = cutpaste.CutPasteBaselineSettings(size=64, patch=16, stride=8)
    side = (64 - 16) // 8 + 1
    distances = np.ones((side, side))
    assert np.allclose(cutpaste.spread(distances.ravel(), settings), 1.0, atol=1e-5)
    distances[3, 3] = 3.0
    found = cutpaste.spread(distances.ravel(), settings)
    assert np.unravel_index(found.argmax(), found.shape) == (3 * 8 + 8, 3 * 8 + 8)


def test_the_mean_has_no_distance_to_the_gaussian() -> None:
    embeddings = np.random.default_rng(0).normal(size=(50, 4))
    gaussian = cutpaste.Gaussian(embeddings)
    assert gaussian.distance(gaussian.mean[None])[0] < 1e-6
    assert (gaussian.distance(embeddings) > 0).all()


def test_an_image_is_turned_before_it_is_normalised_with_black_corners_and_no_new_colours() -> None:
    image = np.full((32, 32, 3), 200, np.uint8)
    image[8:24, 8:24] = 90
    turned = differnet.rotations(image, [0.0, 45.0], CPU)
    pixels = turned * torch.tensor(SPREAD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.equal(turned[0], to_tensor([image], CPU)[0])
    assert torch.allclose(pixels[1, :, 0, 0], torch.zeros(3), atol=1e-6)
    assert np.unique((pixels[1] * 255).round().numpy()).tolist() == [0, 90, 200]


@pytest.mark.parametrize(("product", "margin"), [("bottle", 4), ("tile", 0)])
def test_nsa_looks_at_the_middle_of_an_object_and_at_the_whole_of_a_texture(
    product: str, margin: int, images: list[Image]
) -> None:
    detector = nsa.Nsa(product, nsa.NsaBaselineSettings(size=64, epochs=1, batch=2), CPU)
    detector.fit(images, 0, Clock(0))
    assert detector.network is not None
    score, found = detector.score(images[0])
    middle = images[0][margin : 64 - margin, margin : 64 - margin]
    with torch.inference_mode():
        expected = detector.network(to_tensor([middle], CPU)).sigmoid()[0].numpy()
    assert found.shape == (64, 64)
    assert np.array_equal(found, np.pad(expected, margin))
    assert score == pytest.approx(expected.mean())


def test_labels_are_zero_outside_the_defect_and_rise_with_the_change_inside() -> None:
    normal = np.zeros((2, 3, 3), np.uint8)
    defective = normal.copy()
    defective[0, :] = [[5] * 3, [24] * 3, [90] * 3]
    mask = np.array([[False, True, True], [False, False, True]])
    found = nsa.labels(Synthetic(normal, defective, mask), 1 / 12, 24)
    assert found[0, 0] == found[1, 0] == found[1, 1] == 0
    assert found[0, 1] == pytest.approx(0.5)
    assert 0 < found[1, 2] < found[0, 1] < found[0, 2] < 1


@pytest.mark.parametrize("side", [56, 64])
def test_the_decoder_gives_a_map_of_the_image_s_size(side: int) -> None:
    with torch.inference_mode():
        assert nsa.EncoderDecoder().eval()(torch.zeros(1, 3, side, side)).shape == (1, side, side)


@pytest.mark.parametrize("texture", [True, False])
def test_crops_have_the_published_share_of_the_image(texture: bool) -> None:
    side = 264 if texture else 256
    image = np.zeros((side, side, 3), np.uint8)
    cropped = nsa.augmented(image, texture, True, np.random.default_rng(0))
    assert cropped.shape[:2] == ((256, 256) if texture else (224, 224))
