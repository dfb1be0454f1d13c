"""Runs scripts in this process, which is one of several: `python tests/together.py HOME` with torchrun's variables, one line of JSON a script
on standard input: [name, {option: value}]. An error is a line of standard error, and the next script begins.
"""

import importlib
import json
import sys

import torch
from conftest import home_flags

from common import cli
from common.options import flags

torch.set_num_threads(1)
shown = sys.stdout
for line in sys.stdin:
    name, options = json.loads(line)
    try:
        importlib.import_module(name).main(flags(**home_flags(sys.argv[1]) | options))
    except Exception as e:
        cli.complain(f"{name}: {cli.explained(e)}", 1)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    sys.stdout = shown
