#!/usr/bin/env bash
# A slice of a TPU pod, from your own machine:   examples/launch/tpu_pod.sh NAME ZONE FOLDER [FLAGS OF TRAIN]
# FOLDER is one that all workers have mounted under the same path (Filestore, or a bucket by gcsfuse); the weights and the data set are there too.
set -euo pipefail

name=$1 zone=$2 folder=$3
shift 3
flags=(--weights yolov5m.pt --data voc.yaml --img 512 --batch 256 --freeze 10 --project "$folder/runs" "$@")
# The workers find each other by themselves.
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "cd '$folder' && yolojax train ${flags[*]@Q}"
