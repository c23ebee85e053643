"""Sentry's own normaliser over payloads: a line in, a line out."""

import json
import sys

from sentry_relay.processing import StoreNormalizer

normalizer = StoreNormalizer(
    project_id=1,
    grouping_config={"id": "newstyle:2026-01-20"},
    protocol_version="7",
)
for line in sys.stdin:
    try:
        result = normalizer.normalize_event(json.loads(line))
    except Exception as error:  # what it refuses altogether
        result = {"_meta": {"refused": repr(error)}}
    print(json.dumps(result), flush=True)
