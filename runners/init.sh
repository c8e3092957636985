#!/bin/sh
# What every runner image has under /opt/ahead: the sandbox's init and the interpreters' bootstraps.
# Run in a stage of its own, with the repository's src as /src; its tools stay out of the image.
set -eu
command -v gcc >/dev/null && command -v python3 >/dev/null && [ -e /usr/lib/*/libc.a ] || {
    apt-get update
    apt-get install --yes --no-install-recommends gcc libc6-dev python3
}
PYTHONPATH=/src python3 -B -m code_executor.sandbox.build
mkdir -p /opt/ahead/python
cd /src/code_executor/sandbox
cp _build/launcher /opt/ahead/init
cp _build/zygote.so /opt/ahead/python/zygote.so
cp bootstrap/zygote.py /opt/ahead/python/sitecustomize.py
cp bootstrap/node.js bootstrap/php.php bootstrap/ruby.rb /opt/ahead/
chmod -R a+rX /opt/ahead
