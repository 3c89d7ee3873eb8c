"""One of two processes of which the second is late; `test_nodes.py` starts them.

Takes a folder and writes there, to RANK.json, what each found once both were done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed.distributed_c10d import _set_pg_timeout

from ultragen.training.processes import check_processes, each_by_itself, together

LONGEST, LATE = 2, 6  # seconds


def main() -> None:
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    state = check_processes()
    with together(out):
        _set_pg_timeout(timedelta(seconds=LONGEST))  # what all else waits for
        with each_by_itself():
            time.sleep(LATE * rank)
            (out / f"{rank}.done").touch()
        (out / f"{rank}.json").write_text(json.dumps(len(list(out.glob("*.done")))))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
