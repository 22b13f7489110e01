"""Lists of images of `examples.papers`."""

from pathlib import Path

import pytest
from papers_images import write_domainnet

from examples.papers import lists


def test_a_split_list_gives_paths_and_labels_in_order(tmp_path):
    names = {
        ("train", 10): "real_train_10_percent_split.txt",
        ("train", 100): "real_train_split.txt",
        ("validation", 100): "real_val_100_percent_split.txt",
        ("test", 100): "real_test.txt",
    }
    for i, ((split, percent), name) in enumerate(names.items()):
        labels = [3, 1, 37 + i]
        lines = write_domainnet(tmp_path, "real", name, labels)
        received = lists.domainnet(tmp_path, "real", split, percent)
        assert [label for _, label in received] == labels
        assert [path for path, _ in received] == [f"{tmp_path}/{x.split()[0]}" for x in lines]


def test_paths_of_a_list_may_have_spaces(tmp_path):
    (tmp_path / "real_test.txt").write_text("a b/c d.jpg 4\n")
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/c d.jpg").touch()
    assert lists.domainnet(tmp_path, "real", "test") == [(f"{tmp_path}/a b/c d.jpg", 4)]


def test_a_missing_list_of_a_share_is_not_replaced_by_the_list_of_all(tmp_path):
    write_domainnet(tmp_path, "real", "real_train_split.txt", [0, 1])
    with pytest.raises(ValueError, match="no list real_train_10_percent_split"):
        lists.domainnet(tmp_path, "real", "train", 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no list sketch_train_100_percent_split.txt or sketch_train_split.txt: put"),
        ("", "is empty"),
        ("sketch/a/1.jpg 3\nsketch/a/2.jpg\n", r"line 2: 'sketch/a/2.jpg' is not an image and its"),
        ("sketch/a/1.jpg -1\n", "line 1"),
        ("sketch/a/1.jpg 3\n", r"sketch/a/1.jpg is missing, .* unpack the domain 'sketch'"),
    ],
)
def test_a_list_that_cannot_be_used_is_an_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "sketch_train_split.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        lists.domainnet(tmp_path, "sketch", "train")


def test_an_unknown_split_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='`split` is \'val\': use "train", "validation" or "test"'):
        lists.domainnet(tmp_path, "real", "val")


def folder(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def relative(root, received):
    return [(str(Path(path).relative_to(root)), label) for path, label in received]


def test_a_folder_of_classes_is_labelled_in_alphabetical_order(tmp_path):
    names = [f"n01/{i}.jpg" for i in (5, 2, 8, 1, 9, 3)]
    root = folder(tmp_path, "n02/b.JPEG", "n02/more/a.png", *names, "n02/notes.txt", ".git/x.jpg")
    expected = [(f"n01/{i}.jpg", 0) for i in (1, 2, 3, 5, 8, 9)]
    expected += [("n02/b.JPEG", 1), ("n02/more/a.png", 1)]
    assert relative(root, lists.image_folder(root)) == expected


def test_a_subset_keeps_the_labels_of_all_classes(tmp_path):
    whole = folder(tmp_path / "imagenet", *(f"n{i:02}/0.JPEG" for i in range(12)))
    subset = folder(tmp_path / "imagenet_r", "n03/0.jpg", "n11/0.jpg")
    received = lists.image_folder(subset, lists.class_names(whole))
    assert relative(subset, received) == [("n03/0.jpg", 3), ("n11/0.jpg", 11)]
    other = folder(tmp_path / "other", "n03/0.jpg", "bird/0.jpg")
    with pytest.raises(ValueError, match=r"bird in .* are not among the 12 classes"):
        lists.image_folder(other, lists.class_names(whole))


def test_folders_named_by_numbers_have_them_as_labels(tmp_path):
    root = folder(tmp_path, "0/a.jpeg", "2/a.jpeg", "10/a.jpeg")
    expected = [("0/a.jpeg", 0), ("10/a.jpeg", 10), ("2/a.jpeg", 2)]
    assert relative(root, lists.image_folder(root)) == expected
    assert lists.image_folder(root, [f"n{i}" for i in range(11)]) == lists.image_folder(root)
    with pytest.raises(ValueError, match=r"10 in .* are not among the 10 classes"):
        lists.image_folder(root, [f"n{i}" for i in range(10)])


def test_a_folder_without_classes_or_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="missing is not a folder"):
        lists.image_folder(tmp_path / "missing")
    with pytest.raises(ValueError, match="sort its images into a folder for each class"):
        lists.image_folder(folder(tmp_path / "flat", "a.jpg"))
    with pytest.raises(ValueError, match="n01 has no images"):
        lists.image_folder(folder(tmp_path / "empty", "n01/a.txt"))
