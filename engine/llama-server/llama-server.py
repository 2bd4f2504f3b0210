#!/usr/bin/env python3
"""llama.cpp's own server, as the package xllamacpp carries it, under the name and with the flags of llama-server that the tests use.

The HTTP server, its slots and its cache are llama.cpp's C++; Python only fills in the parameters.
"""
import argparse
import os
import signal
import sys

here = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(here, "bin", "lib"))
import xllamacpp  # noqa: E402

flags = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
flags.add_argument("-m", required=True, metavar="MODEL.gguf")
flags.add_argument("--alias")
flags.add_argument("--host", default="127.0.0.1")
flags.add_argument("--port", type=int, default=8080)
flags.add_argument("-t", type=int, default=os.cpu_count(), metavar="THREADS")
flags.add_argument("-tb", type=int, metavar="THREADS", help="of prefill")
flags.add_argument("-c", type=int, default=0, metavar="TOKENS", help="of context, all slots together")
flags.add_argument("-np", type=int, default=1, metavar="SLOTS")
flags.add_argument("-ctk", default="f16", choices=["f16", "f32"])
flags.add_argument("-ctv", default="f16", choices=["f16", "f32"])
flags.add_argument("-fa", default="auto", choices=["auto", "on", "off"])
flags.add_argument("--lora", default="", metavar="FILE,FILE")
flags.add_argument("--lora-init-without-apply", action="store_true")
flags.add_argument("--no-warmup", action="store_true")
flags.add_argument("--offline", action="store_true")
flags.add_argument("--slots", action="store_true", help="always on, as it is in llama-server")
args = flags.parse_args()

cache = {"f16": xllamacpp.ggml_type.GGML_TYPE_F16, "f32": xllamacpp.ggml_type.GGML_TYPE_F32}
attention = xllamacpp.llama_flash_attn_type
params = xllamacpp.CommonParams()
params.model.path = args.m
if args.alias:
    params.model_alias = {args.alias}
params.hostnames = [args.host]
params.port = args.port
params.cpuparams.n_threads = args.t
params.cpuparams_batch.n_threads = args.tb or args.t
params.n_ctx = args.c
params.n_parallel = args.np
params.cache_type_k, params.cache_type_v = cache[args.ctk], cache[args.ctv]
params.flash_attn_type = {
    "auto": attention.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": attention.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": attention.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}[args.fa]
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in args.lora.split(",") if path]
params.lora_init_without_apply = args.lora_init_without_apply
params.warmup = not args.no_warmup
params.offline = args.offline
params.endpoint_slots = True
params.fit_params = False

server = xllamacpp.Server(params)
print("listening at", server.listening_address, file=sys.stderr, flush=True)
signal.sigwait({signal.SIGINT, signal.SIGTERM})
os._exit(0)
