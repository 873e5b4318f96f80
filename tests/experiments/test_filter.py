from pathlib import Path
from conftest import *
import json
def test_x(reported):
    for r in (reported.report, reported.clean):
        v = json.loads(r.read_text())
        print(v["notes"]); print(v["facts"]["rulers"]["voxels"]["trusted"], v["facts"]["masks"])
        for s in v["facts"]["sets"].values():
            for k,f in s.items(): print(k,f)
