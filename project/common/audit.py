"""The audit: the teacher classifies test images, so that its accuracy and the student's agreement with it are known."""

from collections.abc import Callable

import torch
from torch import Tensor

from .blackbox import RESPONSES, BlackBox
from .cli import UsageError, say
from .datasets import Images
from .measures import Audited, percent
from .options import TeacherOptions
from .teachers import near_chance


def audit(
    args: TeacherOptions, teacher: BlackBox, test: Images, split: str, infer: Callable[[Callable, Images], Tensor], source: str
) -> Audited | None:
    """What the teacher says of the test images of --audit; None where it classifies none.

    split: what the images are called; source: the teacher's file or URL, for errors. UsageError for answers that are not finite.
    """
    wanted = args.audit if args.audit != "auto" else "all" if teacher.free_audit else "none"
    n = (
        0
        if wanted == "none" or (args.dry_run and not teacher.free_audit)
        else len(test)
        if wanted == "all"
        else min(int(wanted), len(test))
    )
    if not n:
        seen = "it classifies no test image (--audit)" if len(test) else "there are no images to test it with"
        say(f"teacher {args.teacher}: {seen}; it answers {args.response}")
        return None
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:n].sort().values
    part = test if n == len(test) else test.subset(rows)
    found = infer(teacher.audit, part)
    if bad := n - int(found.isfinite().all(1).sum()):
        raise UsageError(f"{source} answers with NaN to {bad:,} of {n:,} {split} images; check its weights and normalisation")
    accuracy, classes = percent(found.argmax(1) == part.y), found.shape[1]
    say(f"teacher {args.teacher}: {accuracy:.2f} % of {n:,} {split} images; it answers {args.response}")
    if near_chance(accuracy, n, classes):
        causes = "its normalisation (--teacher_normalize), the order of its classes, or its last layer may differ"
        say(f"WARNING: the teacher is near chance ({100 / classes:.2f} %): {causes}")
    soft = teacher.free_audit or teacher.rank >= RESPONSES.index("soft")
    return Audited(found, None if n == len(test) else rows.to(found.device), soft, accuracy)
