"""A test split of data that has none: which images it has, and every layout of a folder and of an .npz."""

import dataclasses
import inspect
import json
import shutil

import numpy as np
import pytest
from helpers import tiny, untrained
from PIL import Image

from jvdm import config as config_lib
from jvdm.cli import commands
from jvdm.config.sections import Data
from jvdm.core.errors import UserError
from jvdm.data import data_spec, load, load_examples
from jvdm.data.splitting import HeldOut


def image(value, shape=(4, 5, 3)):
    """An image that is known by its first value, in bytes that differ."""
    values = np.random.default_rng(value).integers(0, 256, shape, dtype=np.uint8)
    values[0, 0] = value
    return values


def write(root, *names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)).save(root / name)
    return root


def which(images):
    return images[:, 0, 0, 0].tolist()


def fails(match, source, **options):
    with pytest.raises(UserError, match=match) as error:
        load(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


TWENTY = tuple(f"{i:02d}.png" for i in range(20))


def expected(num, num_test, seed=0):
    order = np.random.Generator(np.random.PCG64(seed)).permutation(num).tolist()
    return order[:-num_test], order[-num_test:]


def test_a_division_depends_on_seed_and_number_alone():
    a, b = (HeldOut(test_fraction=0.2, seed=3).divide(50, where, "is flat") for where in "ab")
    np.testing.assert_array_equal(a.test, b.test)
    assert sorted([*a.train, *a.test]) == list(range(50))
    assert len(a.test) == 10
    assert a.version == "10 of 50 held out by seed 3"
    assert set(HeldOut(test_fraction=0.2, seed=4).divide(50, "a", "").test) != set(a.test)
    assert set(HeldOut(test_fraction=0.3, seed=3).divide(50, "a", "").test) > set(a.test)
    # Pinned: runs resume, and numbers compare, only while it stays.
    assert HeldOut(test_fraction=0.3).divide(10, "a", "").test.tolist() == [0, 8, 1]


@pytest.mark.parametrize(
    ("num", "fraction", "message"),
    [
        (0, 0.1, "a is flat and holds 0 images, too few"),
        (1, 0.5, "a is flat and holds 1 image, too few"),
        (4, 0.1, "test_fraction=0.1 of 4 images leaves none to test on; give 0.25 or more"),
        (3, 0.1, "give 0.33 or more"),
        (4, 0.9, "test_fraction=0.9 of 4 images leaves none to train on; give less, such as 0.5"),
        (10, 0.0, "test_fraction is 0.0: give a number between 0 and 1"),
        (10, 1.0, "test_fraction is 1.0: give"),
        (10, float("nan"), "test_fraction is nan: give"),
    ],
)
def test_a_split_of_no_image(num, fraction, message):
    with pytest.raises(UserError, match=message):
        HeldOut(test_fraction=fraction).divide(num, "a", "is flat")
    if "give" in message and num < 10:
        remedy = 0.5 if "less" in message else float(message.split()[-3])
        division = HeldOut(test_fraction=remedy).divide(num, "a", "is flat")
        assert min(len(division.train), len(division.test)) > 0


def test_a_negative_seed():
    with pytest.raises(UserError, match="split_seed is -1: give 0 or more"):
        HeldOut(seed=-1).divide(10, "a", "is flat")
    HeldOut(seed=0).divide(10, "a", "is flat")


LAYOUTS = {
    "flat": ("", "has neither train/ nor test/"),
    "only train": ("train/", "has no test/"),
    "nested classes": ("a/b/", "has neither train/ nor test/"),
    "class folders of train": ("train/cat/", "has no test/"),
    "unicode": ("Bälle/猫/", "has neither train/ nor test/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_without_test(layout, tmp_path, said):
    prefix, why = LAYOUTS[layout]
    root = write(tmp_path / "s é t", *(prefix + name for name in TWENTY))
    dataset = load(f"folder:{root}")
    train, test = expected(20, 2)
    assert (which(dataset.train), which(dataset.test)) == (train, test)
    assert (dataset.name, dataset.version) == ("folder:s é t", "2 of 20 held out by seed 0")
    line = f"{root} {why}: 2 of 20 images, chosen by data.split_seed=0, are the test split"
    assert said.messages.count(line) == 1
    other = load(f"folder:{root}", test_fraction=0.25, split_seed=7)
    assert which(other.test) == expected(20, 5, seed=7)[1]


def test_classes_are_in_one_order(tmp_path):
    """By name with their folders, which is what a permutation permutes."""
    root = write(tmp_path, "b/0.png", "a/1.png", "a/0.png", "c.png")
    dataset = load(f"folder:{root}", test_fraction=0.5)
    by_name = [2, 1, 0, 3]
    train, test = expected(4, 2)
    assert which(dataset.test) == [by_name[i] for i in test]
    assert which(dataset.train) == [by_name[i] for i in train]


def test_a_folder_with_both_is_not_divided(tmp_path):
    root = write(tmp_path, *(f"train/{name}" for name in TWENTY), "test/a.png", "test/b.png")
    plain = load(f"folder:{root}")
    dataset = load(f"folder:{root}", test_fraction=0.5, split_seed=9)
    assert which(dataset.train) == which(plain.train) == list(range(20))
    assert which(dataset.test) == [20, 21]
    assert dataset.version == plain.version == "-"


def test_folders_that_are_no_splits(tmp_path):
    (tmp_path / "empty").mkdir()
    fails(r"empty holds no images \(.png, ", f"folder:{tmp_path}/empty")
    write(tmp_path / "empty train", "train/a.png")
    (tmp_path / "empty train/train/a.png").unlink()
    fails("empty train/train holds no images", f"folder:{tmp_path}/empty train")
    write(tmp_path / "one", "a.png")
    fails("one has neither train/ nor test/ and holds 1 image, too few", f"folder:{tmp_path}/one")
    write(tmp_path / "tested", *(f"test/{name}" for name in TWENTY))
    message = fails(
        "tested has test/ but no train/: put images to train on into train/, or rename test/ to train/",
        f"folder:{tmp_path}/tested",
    )
    shutil.move(tmp_path / "tested" / "test", tmp_path / "tested" / "train")
    assert len(load(f"folder:{tmp_path}/tested").test) == 2, message


@pytest.mark.parametrize(
    "names",
    [("Train", "TEST"), ("train", "val"), ("training", "testing"), ("dev", "cat"), ("a/train", "a/test")],
)
def test_splits_of_other_names_are_not_classes(names, tmp_path):
    """Their images would be pooled, and what somebody held out be trained on."""
    root = write(tmp_path, *(f"{split}/{name}" for split in names for name in TWENTY))
    wrong = [name.removeprefix("a/") for name in names if name not in ("train", "cat")]
    message = fails("has no test/ but ", f"folder:{root}")
    assert all(f"{name}/" in message for name in wrong)
    assert message.endswith("; put the images into train/ and test/, or rename these folders")


def test_a_bad_file_of_a_flat_folder(tmp_path):
    root = write(tmp_path, *TWENTY)
    (root / "zz.png").write_bytes(b"bad")
    fails("zz.png is not a readable image", f"folder:{root}")


def test_the_split_of_an_example_set_is_that_of_the_dataset(tmp_path):
    """Of a source that is trained on: scores of its test split must not be of images trained on."""
    root = write(tmp_path / "set", *(f"a/{name}" for name in TWENTY))
    np.savez(tmp_path / "set.npz", np.stack([image(i) for i in range(20)]))
    for source in (f"folder:{root}", f"npz:{tmp_path}/set.npz"):
        dataset = load(source, test_fraction=0.25, split_seed=2)
        for split in ("train", "test"):
            found = load_examples(source, split, num_levels=256, test_fraction=0.25, split_seed=2)
            assert found.fingerprint == dataset.fingerprint(split)
            assert (found.name, found.version, found.split) == (dataset.name, dataset.version, split)
            if found.names is not None:
                assert found.names == tuple(f"a/{i:02d}.png" for i in which(found.images))
        whole = load_examples(source, "test", num_levels=256)
        assert (whole.split, whole.version, which(whole.images)) == ("all", "-", list(range(20)))
        with pytest.raises(UserError, match="unknown split 'tset'; did you mean 'test'"):
            load_examples(source, "tset", num_levels=256, test_fraction=0.25)


def test_an_example_set_of_train_alone(tmp_path):
    root = write(tmp_path, *(f"train/{name}" for name in TWENTY), "notes/a.png")
    dataset = load(f"folder:{root}")
    found = load_examples(f"folder:{root}", "train", num_levels=256, test_fraction=0.1)
    assert found.fingerprint == dataset.fingerprint("train")
    assert found.names == tuple(TWENTY[i] for i in expected(20, 2)[0])
    assert len(load_examples(f"folder:{root}", "notes", num_levels=256, test_fraction=0.1).images) == 1


ONE_ARRAY = {
    "any name": {"faces": 1},
    "arr_0": {"arr_0": 1},
    "train_images alone": {"train_images": 1},
    "with labels": {"x": 1, "labels": 0},
    "with other arrays": {"x": 1, "mean": 0, "ids": 0},
    "unicode": {"Bälle": 1},
}


@pytest.mark.parametrize("case", ONE_ARRAY)
def test_an_npz_of_one_array(case, tmp_path, said):
    images = np.stack([image(i) for i in range(20)])
    arrays = {name: images if is_images else np.arange(20) for name, is_images in ONE_ARRAY[case].items()}
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    dataset = load(f"npz:{path}")
    assert (which(dataset.train), which(dataset.test)) == expected(20, 2)
    assert (dataset.name, dataset.version) == ("npz:mine.npz", "2 of 20 held out by seed 0")
    name = next(iter(arrays))
    line = (
        f"{path} has one array of images, {name}: 2 of 20 images, chosen by data.split_seed=0, are the test"
    )
    assert sum(message.startswith(line) for message in said.messages) == 1


NOT_ONE = {
    "two candidates": ({"a": 4, "b": 4}, "several arrays of images, a, b; .*train_images and test_images"),
    "the names of Keras": (
        {"x_train": 4, "x_test": 4, "y_train": 1},
        "several arrays of images, x_test, x_train",
    ),
    "none": (
        {"ids": 1, "mean": 2},
        "holds the arrays ids, mean; it must hold train_images and test_images, or",
    ),
    "no array": ({}, "holds the arrays none; it must hold"),
    "a vector": ({"ids": 1}, r"the train images have shape \[18\]; it must be \[N, H, W, C\]"),
    "a number": ({"ids": 0}, r"ids has shape \[\]; it must be \[N, H, W, C\]"),
    "only test_images": ({"test_images": 4, "b": 4}, "no array 'train_images', only b, test_images"),
}


@pytest.mark.parametrize("case", NOT_ONE)
def test_an_npz_without_one_array_of_images(case, tmp_path):
    ranks, message = NOT_ONE[case]
    arrays = {name: np.zeros((20, 4, 4, 3)[:rank], np.uint8) for name, rank in ranks.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    fails(message, f"npz:{tmp_path}/a.npz")


def test_an_npz_of_few_images(tmp_path):
    for num, message in ((0, "holds 0 images"), (1, "holds 1 image,"), (4, "leaves none to test on")):
        np.savez(tmp_path / "a.npz", np.zeros((num, 4, 4, 1), np.uint8))
        fails(message, f"npz:{tmp_path}/a.npz")
    np.savez(tmp_path / "a.npz", np.zeros((5, 4, 4, 1), np.uint8))
    assert len(load(f"npz:{tmp_path}/a.npz").test) == 1


def test_other_arrays_may_be_objects(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.stack([image(i) for i in range(20)]), classes=np.array(["a", None]))
    assert len(load(f"npz:{tmp_path}/a.npz").test) == 2


def test_an_npz_with_both_is_not_divided(tmp_path):
    images = np.stack([image(i) for i in range(20)])
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images[:3])
    dataset = load(f"npz:{tmp_path}/a.npz", test_fraction=0.5, split_seed=9)
    assert (len(dataset.train), len(dataset.test), dataset.version) == (20, 3, "-")


def test_the_section_of_a_config_is_what_load_takes():
    """Callers pass all of it, so that no option is forgotten."""
    parameters = inspect.signature(load).parameters
    fields = {field.name: field.default for field in dataclasses.fields(Data)}
    assert list(parameters) == list(fields)
    defaults = {name: p.default for name, p in parameters.items() if name != "source"}
    assert defaults == {name: value for name, value in fields.items() if name != "source"}
    assert defaults["test_fraction"] == HeldOut().test_fraction
    assert defaults["split_seed"] == HeldOut().seed
    config = config_lib.default()
    assert load(**config.data).name == "digits"
    assert data_spec(**config.data) == ((8, 8, 1), 17)


def test_a_spec_of_a_flat_folder(tmp_path):
    assert data_spec(f"folder:{write(tmp_path, *TWENTY)}", test_fraction=0.5) == ((4, 5, 3), 256)


def test_scores_of_the_test_split_are_of_what_is_evaluated(tmp_path):
    """In every mode the test split is the part that was held out; another folder is scored whole."""
    images = tiny.images(20)
    for folder in ("set", "other"):
        for i, each in enumerate(images):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(each.squeeze(-1)).save(tmp_path / folder / f"{i:02d}.png")
    c = tiny.light_config().unlock()
    c.data.source, c.data.num_levels = f"folder:{tmp_path / 'set'}", tiny.LEVELS
    c.data.test_fraction, c.data.split_seed, c.eval.estimators = 0.2, 3, "vlb"
    run = untrained.run(c, tmp_path / "run")
    commands.evaluate(commands.Request(c, run))
    for source in ("", c.data.source, f"folder:{tmp_path / 'other'}"):
        c.score.source = source
        commands.score(commands.Request(c, run))
    evaluated, *others = (json.loads(path.read_text())["provenance"] for path in run.eval.glob("*.json"))
    assert not others
    records = (json.loads(path.read_text()) for path in run.scores.glob("*.json"))
    scored = {record["provenance"]["dataset"]: record for record in records}
    of_set = scored["folder:set"]["provenance"]
    assert of_set["dataset_hash"] == evaluated["dataset_hash"]
    assert of_set["dataset_version"] == evaluated["dataset_version"] == "4 of 20 held out by seed 3"
    assert [scored[name]["num_images"] for name in ("folder:set", "folder:other")] == [4, 20]
    (table,) = run.scores.glob("*set_test*.csv")
    names = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    assert names == [f"{i:02d}.png" for i in expected(20, 4, seed=3)[1]]


@pytest.mark.parametrize("split", ["tset", "", "all", "..", "/", "Test"])
def test_a_split_of_another_name(tmp_path, split):
    """A folder with both splits would be taken whole, and `..` would be the folder above it."""
    for part in ("train", "test"):
        (tmp_path / "set" / part).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "set" / part / "a.png")
    np.savez(tmp_path / "one", np.zeros((3, 8, 8, 1), np.uint8))
    for source in (f"folder:{tmp_path / 'set'}", f"npz:{tmp_path / 'one.npz'}", "digits"):
        with pytest.raises(UserError, match=r"unknown split .*\(choices: test, train\)"):
            load_examples(source, split, num_levels=0)
