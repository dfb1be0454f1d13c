"""`folder:PATH`, the user's own images: which folders are training and test set, and what is refused with the likely mistake."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..cli import UsageError
from .images import hash_test
from .listing import Listing, Tree, class_listing, class_of, in_order, scan
from .pictures import Unreadable, open_picture

TRAIN, TEST, VAL = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")
TEST_FRACTION = 0.2  # of a folder that has no test set
SHOWN = 10  # a line names so many classes; of more, the first three and the last


def own_folder(root: str) -> Callable[[str, bool], Listing]:
    """A reader of PATH/train and PATH/test (or val), or of class folders, a fifth of whose images is for testing."""

    @functools.cache
    def both() -> tuple[Listing, Listing]:
        return read_folder(opened(root))

    return lambda _, train: both()[0 if train else 1]


def unlabelled_folder(root: str) -> Callable[[str, bool], Listing]:
    """A reader of all pictures below PATH as training images without labels (0), each distinct file once; the test set is empty."""

    def read(_: str, train: bool) -> Listing:
        path = opened(root)
        tree = scan(path) if train else Tree([], [], Counter())
        if train and not tree.files:
            raise UsageError(f"folder:{path} contains no images{left_out_words(tree.left_out)}")
        files = distinct(tree)
        return Listing(
            str(path), [(f.path, 0) for f in files], [], [f.relative for f in files], [f.size for f in files], tree.left_out, own=True
        )

    return read


def opened(root: str) -> Path:
    """The folder that `folder:root` means; UsageError if it is not there."""
    path = Path(os.path.expanduser(root))
    if path.exists() and not path.is_dir():
        raise UsageError(f"folder:{root} is {'a file; unpack it and' if path.is_file() else 'no folder;'} give the folder")
    if not root or not path.is_dir():
        raise UsageError(f"folder:{root}: no such folder")
    return path


def distinct(tree: Tree) -> list:
    """The files of a tree without copies: of files with equal bytes the first by path."""
    sizes, seen, kept = Counter(f.size for f in tree.files), set(), []
    for f in sorted(tree.files, key=lambda f: f.relative):
        if sizes[f.size] > 1 and (content := content_hash(f.path)) is not None:
            if content in seen:
                tree.left_out["duplicate"] += 1
                continue
            seen.add(content)
        kept.append(f)
    return kept


def content_hash(path: str) -> bytes | None:
    """A hash of a file's bytes, None if it cannot be read."""
    try:
        with open_picture(path) as f:
            return hashlib.file_digest(f, "blake2b").digest()
    except (OSError, Unreadable):
        return None


# ---- layouts


def read_folder(path: Path) -> tuple[Listing, Listing]:
    """(training set, test set) of a folder in one of the layouts. UsageError names the likely mistake."""
    top = scan(path, deep=False)
    train, tests, vals = (one_of(top, names, path) for names in (TRAIN, TEST, VAL))
    if train and not (tests or vals) and not labelled(scan(path / train)):
        train = None  # a class that is called train, or a folder one level too low
    if not train:
        if top.folders and {f.lower() for f in top.folders} <= {*TEST, *VAL}:
            raise UsageError(f"folder:{path} has {words(top.folders)} but no train/; add train/ with one folder per class")
        return split_folder(path)
    others = [t for t in (tests, vals) if t]
    if not others:
        raise UsageError(
            f"folder:{path} has {train}/ but neither test/ nor val/; add one with one folder per class, or use "
            f"folder:{path / train}, of which a fifth is then used for testing"
        )
    return train_and_test(path, top, train, others)


def one_of(top: Tree, names: tuple[str, ...], path: Path) -> str | None:
    """The folder that has one of these names in any case, None if there is none; UsageError if there are several."""
    found = [f for f in top.folders if f.lower() in names]
    if len(found) > 1:
        raise UsageError(f"folder:{path} has {words(found)}; keep one of them")
    return found[0] if found else None


def labelled(tree: Tree) -> bool:
    """Whether a tree has class folders with images."""
    return any(class_of(f) for f in tree.files)


def is_flat(name: str) -> bool:
    """Whether a data set `folder:PATH` is a folder of images without class folders."""
    return name.startswith("folder:") and not labelled(scan(opened(name.partition(":")[2])))


def train_and_test(path: Path, top: Tree, train: str, others: list[str]) -> tuple[Listing, Listing]:
    """Both parts of a folder with a training set `train` and the candidates `others` for the test set."""
    trees = {name: scan(path / name) for name in others}
    test = next((name for name in others if labelled(trees[name])), None)
    if test is None:
        raise UsageError(
            f"folder:{path}: {words(others)} has no class folders, so its images have no labels; add val/ with one folder per class"
        )
    if os.path.realpath(path / train) == os.path.realpath(path / test):
        raise UsageError(f"folder:{path}: {train}/ and {test}/ are the same folder; all test images would be training images")
    tree = scan(path / train)
    classes = checked_classes(path / train, tree)
    found = in_order({class_of(f) for f in trees[test].files} - {None})
    refuse_empty(path / test, trees[test])
    if new := [c for c in found if c not in classes]:
        raise UsageError(
            f"folder:{path}: {test}/ has classes that {train}/ lacks: {', '.join(new)}; {train}/: {class_words(classes)}; "
            f"{test}/: {class_words(found)}; name the folders alike"
        )
    first = class_listing(path / train, tree, classes, path, own=True)
    second = class_listing(path / test, trees[test], classes, path, own=True)
    unused = Counter({f"{name}/" if labelled(trees[name]) else f"{name}/ (no labels)": 1 for name in others if name != test})
    unused += Counter({f"{name}/": 1 for name in top.folders if name not in (train, *others)})
    first.left_out += top.left_out + unused + Counter({"outside class folders": len(top.files)})
    return first, second


def split_folder(path: Path) -> tuple[Listing, Listing]:
    """Both parts of a folder with one folder per class: the hash of an image's path decides."""
    tree = scan(path)
    whole = class_listing(path, tree, checked_classes(path, tree), own=True)
    test, rest = hash_test(whole.paths, whole.y, TEST_FRACTION)
    first, second = whole.keep(rest.tolist()), whole.keep(test.tolist())
    second.left_out = Counter()
    return first, second


# ---- mistakes


def checked_classes(path: Path, tree: Tree) -> list[str]:
    """The class names of a folder in the order of their labels; UsageError where it does not look like one folder per class."""
    if not tree.files:
        raise UsageError(
            f"folder:{path} contains no images{left_out_words(tree.left_out)}; Pillow reads .png, .jpg, .tif, .webp and others"
        )
    classes = in_order({class_of(f) for f in tree.files} - {None})
    if not classes:
        raise UsageError(f"folder:{path} contains images but no class folders; {too_low(path)}")
    refuse_too_high(path, tree, classes)
    if len(classes) == 1:
        raise UsageError(f"folder:{path} has images of one class only ({classes[0]}); a classifier needs two or more class folders")
    refuse_empty(path, tree)
    return classes


def too_low(path: Path) -> str:
    """What to give instead of a folder that is one level too low."""
    parent = path.absolute().parent
    siblings = [f for f in scan(parent, deep=False).folders if any(scan(parent / f, deep=False).files)]
    if len(siblings) > 1:
        higher = parent.parent if parent.name.lower() in (*TRAIN, *TEST, *VAL) else parent
        return f"it is probably one level too low: use folder:{higher}"
    return "put the images of each class into a folder of its own (--pool and --private take images without labels)"


def refuse_too_high(path: Path, tree: Tree, classes: list[str]) -> None:
    """UsageError where no image lies in a class folder itself, and the folders below are called alike: those are the classes."""
    inner = {c: set() for c in classes}
    for f in tree.files:
        parts = f.relative.split("/")
        if len(parts) == 2:
            return
        if len(parts) > 2:
            inner[parts[0]].add(parts[1])
    most = max(inner.values(), key=len)
    if len(most) < 2 or not all(names <= most for names in inner.values()):
        if len(classes) > 1 or len(most) != 1:
            return
        (only,) = most  # a folder in a folder: look further down
        raise UsageError(
            f"folder:{path} is probably too high: its images lie in {classes[0]}/{only}/; use folder:{path / classes[0]}, or deeper"
        )
    below = class_words(in_order(most))
    if len(classes) == 1:
        raise UsageError(f"folder:{path} is probably one level too high: {classes[0]}/ contains {below}; use folder:{path / classes[0]}")
    raise UsageError(
        f"folder:{path} is probably one level too high: {words(classes)} all contain the folders {below}; use folder:{path / classes[0]}, "
        "or name two of them train/ and test/"
    )


def refuse_empty(path: Path, tree: Tree) -> None:
    """UsageError for class folders that contain no image."""
    if empty := in_order(set(tree.folders) - {class_of(f) for f in tree.files}):
        those = "it" if len(empty) == 1 else "them"
        raise UsageError(f"folder:{path}: no images in {words(empty)}{left_out_words(tree.left_out)}; add images, or remove {those}")


# ---- words


def words(folders: list[str]) -> str:
    """`a/, b/ and c/`."""
    names = [f"{f}/" for f in folders[:SHOWN]] + ([f"{len(folders) - SHOWN} more"] if len(folders) > SHOWN else [])
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def class_words(classes: list[str]) -> str:
    """`ant, bee, cow`; of more than ten classes the first three and the last."""
    return ", ".join(classes if len(classes) <= SHOWN else [*classes[:3], "...", classes[-1]])


def left_out_words(left_out: Counter) -> str:
    """`; left out: 3 .heic, 1 hidden`, nothing where nothing was left out."""
    found = sorted(((n, kind) for kind, n in left_out.items() if n), key=lambda row: (-row[0], row[1]))
    return f"; left out: {', '.join(kind if '/' in kind else f'{n} {kind}' for n, kind in found)}" if found else ""


def summary(name: str, train: Listing, test: Listing, n_train: int, n_test: int) -> str:
    """One line on what was read: classes, images of both parts, and what was left out."""
    left_out = left_out_words(train.left_out + test.left_out)
    if not train.classes:
        return f"{name}: {n_train} images without labels{left_out}"
    return f"{name}: {len(train.classes)} classes: {class_words(train.classes)}; {n_train} training and {n_test} test images{left_out}"
