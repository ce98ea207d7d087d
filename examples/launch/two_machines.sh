#!/usr/bin/env bash
# Two machines by hand. On the first one, then on the second one, in a folder that both share:
#   examples/launch/two_machines.sh 0 FIRST:12345 [FLAGS OF TRAIN]
#   examples/launch/two_machines.sh 1 FIRST:12345 [FLAGS OF TRAIN]
# FIRST is the name or address of the first machine, 12345 a port there that is free and that the second one can reach.
set -euo pipefail

process=$1 coordinator=$2
shift 2
flags=(--weights yolov5m.pt --data voc.yaml --img 512 --batch 96 --freeze 10 "$@")
yolojax train --coordinator "$coordinator" --process-id "$process" --process-count 2 "${flags[@]}"
