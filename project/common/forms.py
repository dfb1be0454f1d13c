"""What the dictionaries in this project's files hold: {key: form}. For forms see utils.misfit."""

from .blackbox import BlackBox

NUMBER, FLAG, TEXT_OR_NONE, COUNT = (int, float), (bool, type(None)), (str, type(None)), range(2**62)
PART = {"images": COUNT, "hash": TEXT_OR_NONE}
IDENTITY = {"train": PART, "test": PART, "names": [str], "mean": [NUMBER], "std": [NUMBER], "crop_from": int}  # Data.identity
COUNTS = dict.fromkeys(BlackBox.zero(), COUNT)

OPTIONS, SOURCES = {...: (int, float, bool, str)}, {...: str}  # settings of a run; the files that it is made from, with their hashes

RESULT = {"line": str, "options": OPTIONS, "sources": SOURCES}
RESULT_MORE = {"log": dict, "versions": dict, "data": IDENTITY, "files": {...: str}, "own": dict}
RESULT_NUMBERS = ("accuracy", "best", "top5", "agreement", "teacher_kl", "ece", "teacher_accuracy", "seconds", "repeated", *COUNTS)

ROW = {...: (int, float, [NUMBER])}  # the numbers of one epoch, by name
STATE = {"epoch": int, "objects": dict, "rng": dict, "rows": [ROW], "seconds": float, "options": OPTIONS, "sources": SOURCES}
STATE_MORE = {"data": IDENTITY, "best": (float, int, type(None))}

ABOUT = {"dataset": str, "images": int, "val": NUMBER, "response": str, "teacher": str, "classes": int, "ends": [int]}
ABOUT |= {"counts": COUNTS, "own": COUNTS, "options": OPTIONS, "sources": SOURCES}
ABOUT_MORE = {"data": IDENTITY, "made": {...: OPTIONS}, "script": str}

META = {"script": str, "dataset": str, "shape": list, "classes": int, "data": IDENTITY, "normalize": str, "lamda": NUMBER, "model": str}
META |= {"counts": {...: COUNT}, "teacher": str, "latent": int, "ngf": int}  # what our own files of weights say about themselves

KEPT = {"kept": dict, "counts": COUNTS}


def present(content: dict, more: dict) -> dict:
    """The forms of `more` for the keys that `content` has."""
    return {k: form for k, form in more.items() if k in content}
