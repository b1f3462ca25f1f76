"""What the commands accept. Nothing heavy is imported here."""

import argparse
from pathlib import Path

from flawflow._version import __version__


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="flawflow", description="Find and outline defects never seen before, from good parts only."
    )
    parser.add_argument("--version", action="version", version=f"flawflow {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo(commands.add_parser("demo", help="everything once, offline, on generated images; ends with a report"))
    _check(commands.add_parser("check", help="find what is wrong with a folder of images before a fit"))
    _fit(commands.add_parser("fit", help="learn a product from good images and write a detector file"))
    _calibrate(
        commands.add_parser("calibrate", help="change how often good images may be called defective, without a new fit")
    )
    _inspect(commands.add_parser("inspect", help="score images and draw what is wrong with them"))
    _watch(commands.add_parser("watch", help="inspect a folder as it fills, and tell drift from single defects"))
    _evaluate(commands.add_parser("evaluate", help="measure a detector on test images with known defects"))
    _benchmark(commands.add_parser("benchmark", help="fit and evaluate the categories of a dataset"))
    _synthesize(commands.add_parser("synthesize", help="look at the synthetic defects before you trust them"))
    _weights(commands.add_parser("weights", help="list, fetch and verify the backbones' weights"))
    _reproduce(commands.add_parser("reproduce", help="run the paper's tables, its numbers beside ours"))
    _export(commands.add_parser("export", help="write a detector for ONNX Runtime or OpenVINO, with a certificate"))
    return parser


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder to write to (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything random (default: 0)")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="good images, or one product in a known dataset layout")
    parser.add_argument("-o", "--output", type=Path, help="folder for the page (default: <folder>-check)")
    parser.add_argument("--json", type=Path, help="write the findings to this file")
    parser.add_argument("--quick", action="store_true", help="leave the flow out: files, copies, light and masks alone")
    _budget(parser, "the images must suffice for this promise: 1/1000, 0.001 or 0.1%%", "0.9")
    parser.add_argument("--recipe", default="default", help="default, fast, deit, pair, paper or filters")
    parser.add_argument("--backbone", help="'compact' (comes with the package), 'filters', or a timm model by name")
    parser.add_argument("--weights", type=Path, help="file of the backbone's weights (default: its own)")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything random (default: 0)")
    _device(parser)
    _settings(parser)
    _storing(parser)
    parser.set_defaults(versions=None, tile=None)


def _fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="good images, or one product in a known dataset layout")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the detector file to write, e.g. part.flaw")
    parser.add_argument(
        "--bundle", action="store_true", help="put the backbone into the file too: it then needs no timm and no weights"
    )
    _budget(parser)
    parser.add_argument("--report", type=Path, help="the page about the fit (default: the detector's name with .html)")
    parser.add_argument("--no-report", action="store_true", help="write no page")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="with --recipe auto: leave out what would end after M minutes",
    )
    _common(parser)


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", type=Path, help="a detector file that 'flawflow fit' wrote")
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        help="further good images that the detector did not learn from; named before the options",
    )
    _budget(parser)
    parser.add_argument("--defects", type=Path, metavar="FOLDER", help="images of known defects: estimate the misses")
    parser.add_argument(
        "--replace", action="store_true", help="calibrate on these good images alone, not on those known before"
    )
    parser.add_argument("-o", "--output", type=Path, help="the file to write (default: the detector's own)")
    _loading(parser)


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", type=Path, help="a detector file that 'flawflow fit' or 'flawflow export' wrote")
    parser.add_argument("images", type=Path, nargs="+", help="image files or folders of images")
    parser.add_argument("-o", "--output", type=Path, help="folder for heat-map overlays and table.csv")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    _budget(parser)
    _regions(parser)
    _loading(parser)


def _watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", type=Path, help="a detector file that 'flawflow fit' wrote")
    parser.add_argument("folder", type=Path, help="the folder that images arrive in")
    parser.add_argument("--once", action="store_true", help="deal with what is there and end; exit code 1 = drift")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between looks (default: 2)")
    parser.add_argument("--per-day", type=int, default=1000, metavar="IMAGES", help="images a day (default: 1000)")
    parser.add_argument(
        "--false-alarms-per-day", default="1/30", metavar="RATE", help="false alarms of drift a day (default: 1/30)"
    )
    parser.add_argument(
        "--defects",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="defects up to this share are no drift (default: 0.05)",
    )
    parser.add_argument(
        "--warm-up", type=int, default=0, metavar="N", help="the first N images are good and join the reference"
    )
    parser.add_argument("--state", type=Path, help="file to go on from (default: DETECTOR.watch.json)")
    parser.add_argument("--json", type=Path, help="append one JSON object an image to this file")
    parser.add_argument("--seed", type=int, default=0, help="fixes the draws that break ties (default: 0)")
    _loading(parser)


def _regions(parser: argparse.ArgumentParser) -> None:
    _tile(parser)
    parser.add_argument(
        "--roi", type=Path, metavar="FILE", help="where to look: a mask image (non-zero = inspect) or polygons in .json"
    )
    parser.add_argument(
        "--good", type=Path, metavar="FOLDER", help="good images to calibrate this run on, with its tiles and regions"
    )
    parser.add_argument("--scale", type=float, metavar="MM", help="millimetres along a pixel: sizes in mm too")
    parser.add_argument(
        "--min-area", type=float, default=0.0, metavar="PIXELS", help="leave out smaller defect regions (default: 0)"
    )
    parser.add_argument("--coco", type=Path, metavar="FILE", help="write the defect regions as COCO annotations")


def _tile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile", metavar="SIDE[:OVERLAP]", help="cut images into tiles of SIDE pixels (overlap: SIDE / 4)"
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", type=Path, help="a detector file that 'flawflow fit' wrote")
    parser.add_argument("folder", type=Path, help="one product with test images, in a known dataset layout")
    parser.add_argument("-o", "--output", type=Path, help="folder for the report (default: <detector>-evaluation)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--seed", type=int, help="of the split, for datasets that have none (default: the fit's)")
    _budget(parser)
    _loading(parser)


def _benchmark(parser: argparse.ArgumentParser) -> None:
    layouts = "mvtec_ad, btad, dagm, magnetic_tile, folder or demo (generated)"
    parser.add_argument("--dataset", required=True, help=f"layout of the dataset: {layouts}")
    parser.add_argument("--root", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--categories", help="comma-separated; default: all")
    parser.add_argument("--seeds", type=int, default=1, help="fits per category, seeds 0 … N − 1 (default: 1)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, after every fit")
    parser.add_argument("-o", "--output", type=Path, help="folder for a report about every fit")
    _common(parser, seed=False)


def _synthesize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="good images, or one product in a known dataset layout")
    parser.add_argument("-n", "--count", type=int, default=16, help="how many defects to draw (default: 16)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the contact sheet to write, e.g. sheet.png")
    parser.add_argument("--recipe", default="default", help="default or paper")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything random (default: 0)")
    _settings(parser)


_RATE = (
    "how often a good image may be called defective: 1/1000, 0.001 or 0.1%% (default: the detector's, 0.01 at the fit)"
)


def _budget(
    parser: argparse.ArgumentParser, rate: str = _RATE, confidence: str = "the detector's, 0.9 at the fit"
) -> None:
    """Both options of a budget: the first one's help, and the default of the second."""
    parser.add_argument("--false-alarms", metavar="RATE", help=rate)
    parser.add_argument(
        "--confidence",
        metavar="SHARE",
        help=f"how surely that holds: 0.9 or 90%%, or 'average' (default: {confidence})",
    )


def _weights(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="what is known: size, licence, sha256, where it lies; touches no network")
    fetch = actions.add_parser("fetch", help="get timm's weights as a file, to carry to a machine without network")
    fetch.add_argument("name", help="a timm model by name, e.g. deit_tiny_patch16_224")
    fetch.add_argument("-o", "--output", type=Path, default=Path(), help="folder to write to (default: here)")
    verify = actions.add_parser("verify", help="check that a weights file is whole and the one expected")
    verify.add_argument("file", type=Path, nargs="?", help="the file (default: the weights that come with the package)")
    verify.add_argument("--backbone", help="the backbone that it should fit")
    verify.add_argument("--sha256", help="what its sha256 should be (default: as FILE.sha256 says, if that exists)")


def _reproduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="table1 to table10, or all")
    parser.add_argument("--root", type=Path, help="folder that holds mvtec_ad, btad and dagm, as far as they are here")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("reproduction"),
        help="folder for tables and cells (default: reproduction)",
    )
    _fitting(parser, "paper", "paper (the default), default, fast, deit, pair or filters")
    parser.set_defaults(tile=None)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", type=Path, help="a detector file that 'flawflow fit' wrote")
    parser.add_argument("--format", choices=("onnx", "openvino"), default="onnx", help="onnx (default) or openvino")
    parser.add_argument("-o", "--output", type=Path, help="the .onnx or .xml file (default: named as the detector)")
    parser.add_argument("--samples", type=Path, help="folder of images to compare with (default: drawn ones)")
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="GOOD",
        help="compute the backbone in eight bits, calibrated on this folder of good images",
    )
    parser.add_argument("--weights", type=Path, help="file of the backbone's weights (default: as at the fit)")


def _loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, help="file of the backbone's weights (default: as at the fit)")
    _device(parser)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="change a recipe setting"
    )


def _storing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, help="folder of the feature store (default: in the user's cache)")
    parser.add_argument("--store-limit", type=float, default=50.0, metavar="GB", help="its size limit (default: 50)")
    parser.add_argument("--no-store", action="store_true", help="keep no features after the fit")


def _common(parser: argparse.ArgumentParser, seed: bool = True) -> None:
    parser.add_argument("--shots", type=int, metavar="K", help="use K good images, drawn with the seed")
    _tile(parser)
    _fitting(parser, "default", "default, fast, deit, pair, paper, filters, or auto: the best of several", seed)


def _fitting(parser: argparse.ArgumentParser, recipe: str, recipes: str, seed: bool = True) -> None:
    """How detectors are fitted; ``recipes`` says which recipes there are."""
    parser.add_argument("--recipe", default=recipe, help=recipes)
    parser.add_argument("--backbone", help="'compact' (comes with the package), 'filters', or a timm model by name")
    parser.add_argument("--weights", type=Path, help="file of the backbone's weights (default: its own)")
    if seed:
        parser.add_argument("--seed", type=int, default=0, help="fixes everything random (default: 0)")
    _device(parser)
    _settings(parser)
    parser.add_argument("--versions", type=int, help="synthetic versions of each image (= --set versions=N)")
    _storing(parser)
    parser.add_argument(
        "--select-on-test",
        action="store_true",
        help="choose the epoch on test images, as the paper did; every number is then labelled so",
    )
